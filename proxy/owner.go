package proxy

import "fmt"

// ParseOwner checks the owner of a unix socket, "user", "user:group" or
// ":group", by name or number. Names must exist on this host.
func ParseOwner(s string) (string, error) {
	if _, _, err := lookupOwner(s); err != nil {
		return "", fmt.Errorf("%w; write user, user:group or :group, by name or number, as this host has them", err)
	}
	return s, nil
}
