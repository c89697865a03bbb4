package sandbox

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A grant is a file or folder, with all that is beneath it, that the process
// keeps. Landlock knows it by its inode, as info does: a file that takes the
// place of another is another file.
type grant struct {
	path string
	info fs.FileInfo
}

// grants is what the process keeps of one right.
type grants []grant

// add grants a path that exists, unless it is granted already.
func (g *grants) add(path string) {
	info, err := os.Stat(path)
	if err != nil || g.cover(path) {
		return
	}
	if full, err := filepath.Abs(path); err == nil {
		path = full
	}
	*g = append(*g, grant{path, info})
}

// cover says whether Landlock will let the process have the path: it, or a
// folder above it once symbolic links are followed, was granted.
func (g grants) cover(path string) bool {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(path)
		if err == nil && slices.ContainsFunc(g, func(have grant) bool { return os.SameFile(have.info, info) }) {
			return true
		}
		if path == "/" {
			return false
		}
		path = filepath.Dir(path)
	}
}

func (g grants) String() string {
	paths := make([]string, len(g))
	for i := range g {
		paths[i] = g[i].path
	}
	return strings.Join(paths, ", ")
}

// readable grants the files themselves and, so that they can be replaced, the
// folders in which that happens: a file is often changed by renaming a new one
// over it, and a Kubernetes volume by changing a symbolic link to a new folder.
// Folders that other programs keep their files in are not granted.
func (g *grants) readable(files []string) {
	for _, file := range files {
		target, err := filepath.EvalSymlinks(file)
		if err != nil {
			continue // it is not there, which its reader knows how to handle
		}
		for _, dir := range folders(file) {
			if !shared(dir) {
				g.add(dir)
			}
		}
		g.add(target)
	}
}

// folders lists the folders in which a rename can make path another file: its
// own, and those of the symbolic links on the way to it.
func folders(path string) []string {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	var dirs []string
	at, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		target, err := os.Readlink(next)
		if err != nil {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return nil
		}
		dirs = append(dirs, at)
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return append(dirs, filepath.Dir(at))
}

// maxLinks is how many symbolic links the kernel follows in one path.
const maxLinks = 40

// systemFiles tell the resolver where to ask, and the numbers of users and
// groups. All are public.
var systemFiles = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"}

// resolverFolders hold a resolv.conf and nothing secret. The one in /etc may
// become a symbolic link to it while sealane runs.
var resolverFolders = []string{"/run/systemd/resolve", "/run/resolvconf"}

// system grants what lookups read. Programs that change those files rename new
// ones over them, and Landlock knows a new file by its folder alone: there is
// no rule for a name. So /etc itself is granted, to read files in it, beneath
// the permissions that they have. docs/threat-model.md says what that means for
// a process that runs as root.
func (g *grants) system() {
	for _, file := range systemFiles {
		for _, dir := range folders(file) {
			if dir == "/etc" || !shared(dir) {
				g.add(dir)
			}
		}
		g.add(file) // where its folder is shared
	}
	for _, dir := range resolverFolders {
		g.add(dir)
	}
}

// sharedFolders hold the files of many programs, secrets among them. So does
// every home.
var sharedFolders = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/etc/ssl/private", "/home", "/lib", "/media", "/mnt", "/opt", "/proc", "/root",
	"/run", "/run/secrets", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/local/etc", "/var", "/var/lib", "/var/run", "/var/tmp",
}

func shared(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return true
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	return isShared(dir, home)
}

// isShared is shared for the real path of a folder, and of the user's home, ""
// if there is none.
func isShared(dir, home string) bool {
	return slices.Contains(sharedFolders, dir) || filepath.Dir(dir) == "/home" || home != "" && dir == filepath.Clean(home)
}

// missing is what a config needs beyond what was granted.
type missing struct {
	files, ports, other []string
}

func (s *Sandbox) missing(n Needs) missing {
	var m missing
	if !s.files {
		return m
	}
	for _, path := range n.Read {
		if _, err := os.Stat(path); err == nil && !s.read.cover(path) {
			m.files = append(m.files, "read "+path)
		}
	}
	for _, dir := range n.Sockets {
		if _, err := os.Stat(dir); err == nil && !s.sockets.cover(dir) {
			m.files = append(m.files, "make a unix socket in "+dir)
		}
	}
	if s.bind != nil {
		m.ports = append(m.ports, missingPorts(s.bind, n.Bind, "listen on")...)
	}
	if s.connect != nil {
		m.ports = append(m.ports, missingPorts(s.connect, n.Connect, "connect to")...)
	}
	if s.scoped && n.Abstract != "" {
		m.other = append(m.other, "connect to a unix socket without a path ("+n.Abstract+")")
	}
	return m
}

// keys names what of the config grants in advance what is missing.
func (m missing) keys() []string {
	var keys []string
	if len(m.ports) > 0 {
		keys = append(keys, "sandbox.ports")
	}
	if len(m.files) > 0 {
		keys = append(keys, "sandbox.paths")
	}
	return keys
}

func missingPorts(have *portSet, want []Ports, verb string) []string {
	var out []string
	for _, r := range want {
		if !have.covers(r) {
			out = append(out, fmt.Sprintf("%s TCP port %s (%s)", verb, r.span(), r.For))
		}
	}
	return out
}
