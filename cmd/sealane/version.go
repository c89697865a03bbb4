package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by -ldflags "-X main.version=...". It is shown here, in the
// admin endpoint and in the log, and never on the wire.
var version = ""

func runVersion(p *process, _ input) int {
	fmt.Fprintf(p.stdout, "sealane %s %s %s/%s\n", versionName(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return exitOK
}

// versionName is the stamped version, or else what the go command recorded.
func versionName() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	name, dirty := info.Main.Version, ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && (name == "" || name == "(devel)"):
			name = "devel-" + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true" && name != info.Main.Version:
			dirty = "-dirty"
		}
	}
	if name == "" || name == "(devel)" {
		return "devel"
	}
	return name + dirty
}
