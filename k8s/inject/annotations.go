package inject

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/sealane/sealane/k8s/redirect"
)

const prefix = "sealane.dev/"

// The annotations of a pod template that injection reads.
const (
	annInject       = prefix + "inject"              // enabled (the same as absent) or disabled
	annConfig       = prefix + "config"              // ConfigMap with the key sealane.yaml
	annIdentity     = prefix + "identity"            // Secret with the key node.key
	annSkipOutbound = prefix + "skip-outbound-ports" // destination ports that stay in plaintext
	annSkipInbound  = prefix + "skip-inbound-ports"  // app ports that stay open in plaintext
	annSkipCIDRs    = prefix + "skip-cidrs"          // destinations that stay in plaintext
	annImage        = prefix + "image"               // sidecar image
)

// defaultName is the ConfigMap and the Secret of a pod that names none, so that
// a namespace with one identity needs no annotation at all.
const defaultName = "sealane"

// annotations is what a pod template asks for.
type annotations struct {
	disabled    bool
	config      string
	identity    string
	image       string
	skipCIDRs   string
	skipInbound []redirect.PortRange

	skipOutbound []redirect.PortRange
}

// objectName is the form of a ConfigMap's or Secret's name (RFC 1123 subdomain).
var objectName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// parseAnnotations reads the annotations under the prefix. Each must be known
// and well formed, so that a misspelt one is not silently without effect.
func parseAnnotations(all map[string]any, image string) (annotations, error) {
	a := annotations{config: defaultName, identity: defaultName, image: image}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		value, ok := all[key].(string)
		if !ok {
			return a, fmt.Errorf("annotation %s is not a string: quote it", key)
		}
		if err := a.set(key, strings.TrimSpace(value)); err != nil {
			return a, err
		}
	}
	return a, nil
}

func (a *annotations) set(key, value string) error {
	var err error
	switch key {
	case annInject:
		if value != "enabled" && value != "disabled" {
			err = fmt.Errorf("%q is neither enabled nor disabled", value)
		}
		a.disabled = value == "disabled"
	case annConfig:
		a.config, err = value, checkName("ConfigMap", value)
	case annIdentity:
		a.identity, err = value, checkName("Secret", value)
	case annImage:
		if a.image = value; value == "" || strings.ContainsAny(value, " \t\n") {
			err = fmt.Errorf("%q is not the name of an image", value)
		}
	case annSkipOutbound:
		a.skipOutbound, err = redirect.ParsePorts(value)
	case annSkipInbound:
		a.skipInbound, err = redirect.ParsePorts(value)
	case annSkipCIDRs:
		a.skipCIDRs, err = checkCIDRs(value)
	default:
		return fmt.Errorf("unknown annotation %s: known are %s", key, strings.Join([]string{
			annInject, annConfig, annIdentity, annSkipOutbound, annSkipInbound, annSkipCIDRs, annImage}, ", "))
	}
	if err != nil {
		return fmt.Errorf("annotation %s: %w", key, err)
	}
	return nil
}

func checkName(kind, name string) error {
	if len(name) > 253 || !objectName.MatchString(name) {
		return fmt.Errorf("%q is not the name of a %s", name, kind)
	}
	return nil
}

// checkCIDRs gives the list without spaces, as the redirect command reads it.
func checkCIDRs(value string) (string, error) {
	prefixes, err := redirect.ParseCIDRs(value)
	if err != nil {
		return "", err
	}
	var items []string
	for _, p := range prefixes {
		items = append(items, p.String())
	}
	return strings.Join(items, ","), nil
}
