package main

import "time"

// A report is what /status answers: the state of this node as JSON. It holds
// no secret, and is made to be read by people: empty lists are [], not null.
type report struct {
	Version   string    `json:"version"`
	PublicKey string    `json:"public_key"`
	Now       time.Time `json:"now"`
	Started   time.Time `json:"started"`

	Ready   bool     `json:"ready"`
	Pending []string `json:"pending"` // what /ready waits for
	// Draining is true from the TERM on.
	Draining bool `json:"draining"`

	Config     configReport      `json:"config"`
	Listen     string            `json:"listen"` // for links; "" if there is none
	Listeners  []listenerReport  `json:"listeners"`
	Services   []serviceReport   `json:"services"`
	Peers      []peerReport      `json:"peers"`
	Streams    streamsReport     `json:"streams"`
	Violations map[string]uint64 `json:"violations"` // by rule, those that were broken
	Events     []event           `json:"events"`     // the most recent first
}

type configReport struct {
	File     string    `json:"file"`
	Revision string    `json:"revision"`
	Loaded   time.Time `json:"loaded"`
	Reloads  uint64    `json:"reloads"`
	Failed   uint64    `json:"reloads_failed"`
	Error    string    `json:"error"` // of the last reload, "" if it was good
}

type listenerReport struct {
	Kind    string `json:"kind"`
	Address string `json:"address"`
	To      string `json:"to"` // PEER/SERVICE for a forward; "" where routes decide
	Open    int64  `json:"open"`
	Total   int64  `json:"total"` // connections since the start
	Problem string `json:"problem"`
}

type serviceReport struct {
	Name  string   `json:"name"`
	Allow []string `json:"allow"`
}

type peerReport struct {
	Name     string       `json:"name"`
	Up       bool         `json:"up"`
	Dialed   bool         `json:"dialed"`  // this node dials it, it has an address
	Problem  string       `json:"problem"` // why the last attempt failed, while no link is up
	Links    []linkReport `json:"links"`
	Streams  int          `json:"streams"`
	BytesIn  uint64       `json:"bytes_in"` // app bytes from the peer, since the start
	BytesOut uint64       `json:"bytes_out"`
}

type linkReport struct {
	State      string  `json:"state"` // up, or draining where the peer takes no more streams
	Address    string  `json:"address"`
	Dialed     bool    `json:"dialed"`
	AgeSeconds float64 `json:"age_seconds"`
	RTTSeconds float64 `json:"rtt_seconds"`
	Transform  string  `json:"transform"`
	Cipher     string  `json:"cipher"`
	RekeysIn   uint64  `json:"rekeys_in"`
	RekeysOut  uint64  `json:"rekeys_out"`
	BytesIn    uint64  `json:"bytes_in"`
	BytesOut   uint64  `json:"bytes_out"`
	Streams    int     `json:"streams"`
}

type streamsReport struct {
	Open  int               `json:"open"`
	Ended map[string]uint64 `json:"ended"` // by result
}
