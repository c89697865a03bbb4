package redirect

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// routeGateway is RTF_GATEWAY: the route leads through another host.
const routeGateway = 0x2

// gateways lists the next hops of this network namespace's default routes. In a pod on a bridge that is the node's
// address on the bridge, from which the node's own connections to the pod come.
func gateways() ([]netip.Prefix, error) {
	var found []netip.Prefix
	for name, parse := range map[string]func(cols []string) (netip.Addr, error){
		"/proc/self/net/route":      parseGateway4,
		"/proc/self/net/ipv6_route": parseGateway6,
	} {
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) { // the kernel was started without IPv6
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing the routes: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			a, err := parse(strings.Fields(line))
			if err != nil {
				return nil, fmt.Errorf("listing the routes in %s: %w", name, err)
			}
			if a.IsValid() {
				found = append(found, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return found, nil
}

// parseGateway4 reads a row such as
//
//	eth0 00000000 0100F40A 0003 0 0 0 00000000 ...
//
// and gives the gateway, or nothing if it is no default route through one.
func parseGateway4(cols []string) (netip.Addr, error) {
	if len(cols) < 8 {
		return netip.Addr{}, fmt.Errorf("a row of %d columns", len(cols))
	}
	if cols[1] != "00000000" || cols[7] != "00000000" {
		return netip.Addr{}, nil
	}
	if through, err := isThroughGateway(cols[3]); err != nil || !through {
		return netip.Addr{}, err
	}
	a, err := parseProcAddr(cols[2] + ":0")
	return a.Addr(), err
}

// parseGateway6 reads a row such as
//
//	00000000000000000000000000000000 00 (source) 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003 eth0
func parseGateway6(cols []string) (netip.Addr, error) {
	if len(cols) < 10 {
		return netip.Addr{}, fmt.Errorf("a row of %d columns", len(cols))
	}
	if strings.Trim(cols[0], "0") != "" || cols[1] != "00" {
		return netip.Addr{}, nil
	}
	if through, err := isThroughGateway(cols[8]); err != nil || !through {
		return netip.Addr{}, err
	}
	raw, err := hex.DecodeString(cols[4])
	if err != nil {
		return netip.Addr{}, err
	}
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%q is no address", cols[4])
	}
	return a, nil
}

func isThroughGateway(flags string) (bool, error) {
	n, err := strconv.ParseUint(flags, 16, 32)
	return n&routeGateway != 0, err
}
