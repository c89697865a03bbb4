package redirect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// DryRun returns what Up would install, as a script for nft.
func DryRun(o Options) (string, error) {
	if err := o.Validate(); err != nil {
		return "", err
	}
	return build(o).replacement(), nil
}

// Up puts the rules for o in place of any that are there and proves with a real connection in each address family
// that they work. If they do not, it removes them and returns an error.
func Up(ctx context.Context, o Options) (Report, error) {
	if err := o.Validate(); err != nil {
		return Report{}, err
	}
	conn, err := nftables.New()
	if err != nil {
		return Report{}, explain("opening a netlink socket", err)
	}
	if err := install(conn, build(o)); err != nil {
		return Report{}, explain("installing the rules", err)
	}
	families, err := verify(ctx, o)
	if err != nil {
		if _, rerr := remove(conn); rerr != nil {
			return Report{}, errors.Join(err, explain("removing the rules after that", rerr))
		}
		return Report{}, fmt.Errorf("%w\nthe rules were removed: nothing is redirected or guarded", err)
	}
	return Report{Families: families, Warnings: warnings(o)}, nil
}

// Down removes the rules and reports whether there were any.
func Down() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, explain("opening a netlink socket", err)
	}
	found, err := remove(conn)
	if err != nil {
		return false, explain("removing the rules", err)
	}
	return found, nil
}

// Show returns the installed rules in nft's syntax, or "" if there are none.
func Show() (string, error) {
	conn, err := nftables.New()
	if err != nil {
		return "", explain("opening a netlink socket", err)
	}
	rs, err := read(conn)
	if err != nil {
		return "", explain("reading the rules", err)
	}
	if rs == nil {
		return "", nil
	}
	return rs.String(), nil
}

// install replaces the table in one batch, which the kernel takes as a whole or not at all. Adding the table first
// makes the deletion legal when it is not there.
func install(conn *nftables.Conn, rs *ruleset) error {
	conn.AddTable(rs.table)
	conn.DelTable(rs.table)
	conn.AddTable(rs.table)
	for _, s := range rs.sets {
		if err := conn.AddSet(s.nft, elements(s.intervals)); err != nil {
			return fmt.Errorf("set %s: %w", s.nft.Name, err)
		}
	}
	for _, c := range rs.chains {
		conn.AddChain(c.nft)
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: rs.table, Chain: c.nft, Exprs: r})
		}
	}
	return conn.Flush()
}

func remove(conn *nftables.Conn) (found bool, err error) {
	table, err := lookup(conn)
	if table == nil || err != nil {
		return false, err
	}
	conn.DelTable(table)
	return true, conn.Flush()
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
		rs.sets = append(rs.sets, set{s, intervalsOf(els)})
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if c.Table.Name != tableName || c.Hooknum == nil {
			continue
		}
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
