package session

import (
	"crypto/mlkem"
	"fmt"

	"github.com/flynn/noise"
)

// Decoys makes the answers to message 1s that are none (SPEC.md section 3).
// To whoever does not hold the key behind a message 1, they are like those to
// a good one, and take as long: so a recorded message 1, sent to many
// addresses, does not tell which of them is the node that it was made for.
type Decoys struct {
	key  *mlkem.EncapsulationKey768 // its other half is thrown away
	text []byte
}

// NewDecoys makes what all decoys of a node encapsulate to.
func NewDecoys() (*Decoys, error) {
	key, err := mlkem.GenerateKey768()
	if err != nil {
		return nil, fmt.Errorf("decoys: %w", err)
	}
	return newDecoys(key), nil
}

func newDecoys(key *mlkem.DecapsulationKey768) *Decoys {
	k := key.EncapsulationKey()
	return &Decoys{k, k.Bytes()}
}

// decoyPattern is what is left of XK behind message 1, as noise sees it from
// the side that writes next.
var decoyPattern = noise.HandshakePattern{
	Name:     "decoy",
	Messages: [][]noise.MessagePattern{{noise.MessagePatternE, noise.MessagePatternDHEE}, {noise.MessagePatternS, noise.MessagePatternDHSE}},
}

// pretend turns a handshake whose message 1 is none into a decoy: it goes on
// with the same operations, in a Noise state of its own whose PSK nobody can
// know, so that nothing it seals opens and nothing opens for it. It returns
// the key to encapsulate to; parsed says that message 1's own was read.
func (h *handshake) pretend(message1 []byte, parsed bool) (*mlkem.EncapsulationKey768, error) {
	decoys := h.cfg.Decoys
	if decoys == nil {
		var err error
		if decoys, err = NewDecoys(); err != nil {
			return nil, err
		}
	}
	h.dh.lowOrder, h.dh.decoy = false, true
	cfg := h.noiseConfig()
	cfg.Pattern, cfg.PresharedKeyPlacement = decoyPattern, 1
	cfg.Initiator, cfg.PeerEphemeral = true, message1[:32]
	var err error
	if h.noise, err = noise.NewHandshakeState(cfg); err != nil {
		return nil, err
	}
	h.choice = new(choice)
	if parsed {
		return decoys.key, nil
	}
	// What reading message 1 has saved.
	o, err := parseOffer(append(h.cfg.offer().append(nil), make([]byte, payload1Len-kemKeyLen)...))
	if err != nil {
		return nil, err
	}
	if h.choice, err = h.cfg.choose(o); err != nil {
		return nil, err
	}
	return mlkem.NewEncapsulationKey768(decoys.text)
}
