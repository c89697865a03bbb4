package redirect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// DryRun returns what Up would install, as a script for nft.
func DryRun(o Options) (string, error) {
	if err := o.Validate(); err != nil {
		return "", err
	}
	return build(o, nil).replacement(), nil
}

// Up puts the rules for o in place of any that are there and proves with a real connection in each address family
// that they work. If they do not, those that were there come back, or, if there were none, rules that refuse what o
// would catch. There is no moment at which neither the old rules nor the new nor those are in force, even if the
// process is killed.
func Up(ctx context.Context, o Options) (Report, error) {
	if err := o.Validate(); err != nil {
		return Report{}, err
	}
	defer lock(ctx)()
	if err := ctx.Err(); err != nil { // interrupted while another one was at work
		return Report{}, err
	}
	old, err := installed()
	if err != nil {
		return Report{}, explain("reading the rules", err)
	}
	before, err := openBefore(o, old)
	if err != nil {
		return Report{}, err
	}
	rs := build(o, before)
	err = checkListener(o)
	if err != nil && old != nil {
		return Report{}, fmt.Errorf("%w\nthe rules that were there are in force as before", err)
	}
	var families []Family
	if err == nil {
		families, err = replace(ctx, o, rs)
	}
	if err != nil {
		return Report{}, fallBack(err, old, rs.refusing())
	}
	return Report{Families: families, Warnings: warnings(o)}, nil
}

// attempts is how often rules are installed that another program disturbs: a watch puts back, once, those that somebody
// has removed, and may do so at the same moment.
const attempts = 3

// replace installs rs and proves it.
func replace(ctx context.Context, o Options, rs *ruleset) ([]Family, error) {
	var err error
	for range attempts {
		if err = install(rs); err != nil {
			err = explain("installing the rules", err)
		} else if err = confirm(rs); err == nil {
			return verify(ctx, o)
		}
	}
	return nil, err
}

// confirm sees that what the kernel has is rs and nothing else.
func confirm(rs *ruleset) error {
	now, err := installed()
	if err != nil {
		return explain("reading the rules", err)
	}
	if now == nil || now.canonical() != rs.canonical() {
		return errors.New("the kernel does not have the rules that were installed: does another program change them?")
	}
	return nil
}

// fallBack sees to it that there are rules after new ones have failed, and adds to the reason which those are.
func fallBack(reason error, old, refusing *ruleset) error {
	if old != nil {
		err := install(old)
		if err == nil {
			return fmt.Errorf("%w\nthe rules that were there are in force again", reason)
		}
		reason = errors.Join(reason, explain("putting back the rules that were there", err))
	}
	if err := install(refusing); err != nil {
		return fmt.Errorf("%w\n%w\nsee \"sealane redirect show\" for what is in force", reason, explain("installing rules that refuse connections", err))
	}
	return fmt.Errorf("%w\nuntil the next \"sealane redirect up\" that succeeds, or \"down\", connections that the rules would "+
		"catch are refused", reason)
}

// openBefore lists the connections that are left alone because there were no rules when they were opened. Old rules
// have kept that list. What was opened since, and was not caught by those, the kernel knows by itself.
func openBefore(o Options, old *ruleset) ([]socket, error) {
	all, err := tcpSockets()
	if err != nil {
		return nil, err
	}
	if old == nil {
		return build(o, nil).untouched(all), nil
	}
	return slices.DeleteFunc(all, func(s socket) bool { return !s.isConnection() || !old.wasOpen(s) }), nil
}

// Down removes the rules and reports whether there were any. First it ends the connections that they redirected, whose
// programs would go on sending, to the real destination.
func Down() (found bool, err error) {
	defer lock(context.Background())()
	rs, err := installed()
	if err != nil {
		return false, explain("reading the rules", err)
	}
	if rs == nil {
		return false, nil
	}
	if err := install(rs.ending()); err != nil {
		return false, explain("closing the way to the listener", err)
	}
	if err := rs.reset(); err != nil {
		return false, fmt.Errorf("%w\nthe rules are still there, for those connections; new ones that they would catch are "+
			"refused; end the programs and try again", err)
	}
	if err := remove(); err != nil {
		return false, explain("removing the rules", err)
	}
	return true, nil
}

// Show returns the installed rules in nft's syntax, or "" if there are none.
func Show() (string, error) {
	rs, err := installed()
	if err != nil {
		return "", explain("reading the rules", err)
	}
	if rs == nil {
		return "", nil
	}
	return rs.String(), nil
}

const (
	// sendBuffer has room for a batch with as many connections as a host may have open.
	sendBuffer = 64 << 20
	// chunk is how many elements of a set fit into one message.
	chunk = 512
)

func dialKernel() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(sendBuffer) }))
}

// install puts rs in place of what is there. The kernel takes a batch as a whole or not at all, but that alone is not
// enough: each chain looks once, when a packet enters it, at which rules are in force, so a packet that finds the new
// chain empty may, a moment later, find the old one empty; and a set that comes with a batch may be seen without its
// elements for a moment. Hence the sets come first, in a batch of their own and under names of their own, then the rules
// in the chains that are there are replaced, and then the old sets go. A process that is killed on the way leaves the
// old rules or the new ones, and a few sets that the next one takes away.
//
// Another program may flush all tables between two steps: what the next step builds on is then gone, and install begins
// anew. Where it is the kernel that lacks something, the last attempt says so.
func install(rs *ruleset) error {
	const attempts = 5
	for i := 1; ; i++ {
		if err := installOnce(rs); i == attempts || !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

func installOnce(rs *ruleset) error {
	now, err := installed()
	if err != nil {
		return err
	}
	if now == nil || !now.fits(rs) {
		return replaceTable(rs)
	}
	next := rs.besides(now)
	steps := []func(*nftables.Conn) error{
		func(conn *nftables.Conn) error {
			now.deleteSets(conn, false)
			return next.addSets(conn)
		},
		func(conn *nftables.Conn) error {
			now.replaceRules(conn, next)
			return nil
		},
		func(conn *nftables.Conn) error {
			now.deleteSets(conn, true)
			return nil
		},
	}
	for _, step := range steps {
		if err := inBatch(step); err != nil {
			return err
		}
	}
	return nil
}

func inBatch(step func(*nftables.Conn) error) error {
	conn, err := dialKernel()
	if err != nil {
		return err
	}
	if err := step(conn); err != nil {
		return err
	}
	return conn.Flush()
}

// replaceTable installs rs where there is nothing, or the table of an older version, whose chains are others. Adding the
// table first makes the deletion legal when it is not there.
func replaceTable(rs *ruleset) error {
	return inBatch(func(conn *nftables.Conn) error {
		conn.AddTable(rs.table)
		conn.DelTable(rs.table)
		conn.AddTable(rs.table)
		if err := rs.addSets(conn); err != nil {
			return err
		}
		rs.addChains(conn, func(string) bool { return true })
		return nil
	})
}

func (rs *ruleset) addSets(conn *nftables.Conn) error {
	for _, s := range rs.sets {
		if err := s.add(conn); err != nil {
			return fmt.Errorf("set %s: %w", s.nft.Name, err)
		}
	}
	return nil
}

// addChains adds rules, and the chains that are new.
func (rs *ruleset) addChains(conn *nftables.Conn, isNew func(chain string) bool) {
	for _, c := range rs.chains {
		if isNew(c.nft.Name) {
			conn.AddChain(c.nft)
		}
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: rs.table, Chain: c.nft, Exprs: r})
		}
	}
}

// replaceRules puts the rules of next in place of those of rs, which is installed.
func (rs *ruleset) replaceRules(conn *nftables.Conn, next *ruleset) {
	for _, c := range rs.chains {
		conn.FlushChain(c.nft)
		if next.chain(c.nft.Name) == nil {
			conn.DelChain(c.nft)
		}
	}
	next.addChains(conn, func(name string) bool { return rs.chain(name) == nil })
}

// deleteSets deletes the sets that the rules of rs look into, or those that they do not.
func (rs *ruleset) deleteSets(conn *nftables.Conn, used bool) {
	for _, s := range rs.sets {
		if rs.uses(s.nft.Name) == used {
			conn.DelSet(s.nft)
		}
	}
}

// fits reports whether the chains of the installed table can stay, those aside that next has not.
func (rs *ruleset) fits(next *ruleset) bool {
	return !slices.ContainsFunc(rs.chains, func(c chain) bool {
		n := next.chain(c.nft.Name)
		if n == nil {
			return c.nft.Name != guardChain
		}
		return n.Type != c.nft.Type || *n.Hooknum != *c.nft.Hooknum || *n.Priority != *c.nft.Priority
	})
}

func (s set) add(conn *nftables.Conn) error {
	els := elements(s.intervals)
	for _, k := range s.keys {
		els = append(els, nftables.SetElement{Key: k})
	}
	fresh := *s.nft
	fresh.ID = 0 // a number within the batch
	if err := conn.AddSet(&fresh, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(els, chunk) {
		if err := conn.SetAddElements(&fresh, part); err != nil {
			return err
		}
	}
	return nil
}

func remove() error {
	return inBatch(func(conn *nftables.Conn) error {
		conn.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
		return nil
	})
}

// installed returns the table as the kernel has it, or nil if there is none. Reading takes several requests: what is
// replaced between them is read anew.
func installed() (rs *ruleset, err error) {
	for range attempts {
		var conn *nftables.Conn
		if conn, err = dialKernel(); err != nil {
			return nil, err
		}
		if rs, err = read(conn); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return rs, err
}

// lookup returns the installed table, or nil.
func lookup(conn *nftables.Conn) (*nftables.Table, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return nil, nil
	}
	return tables[i], nil
}

// read returns what is installed, or nil.
func read(conn *nftables.Conn) (*ruleset, error) {
	table, err := lookup(conn)
	if table == nil || err != nil {
		return nil, err
	}
	rs := &ruleset{table: table}
	sets, err := conn.GetSets(table)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		els, err := conn.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", s.Name, err)
		}
		if s.Interval {
			rs.sets = append(rs.sets, set{nft: s, intervals: intervalsOf(els)})
			continue
		}
		keys := make([][]byte, len(els))
		for i, e := range els {
			keys[i] = e.Key
		}
		slices.SortFunc(keys, bytes.Compare)
		rs.sets = append(rs.sets, set{nft: s, keys: keys})
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if c.Table.Name != tableName || c.Hooknum == nil {
			continue
		}
		c.Table = table
		rules, err := conn.GetRules(table, c)
		if err != nil {
			return nil, fmt.Errorf("chain %s: %w", c.Name, err)
		}
		rc := chain{nft: c}
		for _, r := range rules {
			rc.rules = append(rc.rules, r.Exprs)
		}
		rs.chains = append(rs.chains, rc)
	}
	rs.sort()
	return rs, nil
}

// explain adds to a kernel's error what a person can do about it.
func explain(doing string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w\nthis needs the capability NET_ADMIN in this network namespace: run it as root, "+
			"or in an init container with user 0 and capabilities.add: [NET_ADMIN]", doing, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT),
		errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%s: %w\nthis kernel cannot do it: Linux 5.2 or later with the modules nf_tables, nft_chain_nat "+
			"and nft_redir is needed; in a container the host has to load them", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
