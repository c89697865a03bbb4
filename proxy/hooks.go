package proxy

// Hooks are called for metrics. Any may be nil. They must not block.
//
// peer is the peer's name, or "direct" for a direct route. via is the kind of
// the listener for streams from an app, "service" or "egress" for streams
// from a peer.
type Hooks struct {
	// StreamOpened is called when a stream's target is connected.
	StreamOpened func(peer, via string)
	// StreamClosed is called once for each StreamOpened.
	StreamClosed func(peer, via string)
	// StreamResult is called once for every connection or inbound stream,
	// opened or not, but for those whose app said nothing to a listener that
	// it has to tell where it wants to go. peer is "" if none was chosen.
	StreamResult func(peer, via string, result Result)
	// Bytes is called as app bytes move: out is from an app of this node to
	// the peer or from a target of this node to the peer, in the reverse.
	Bytes func(peer string, dir Direction, n int)
}

// Direction is a direction of app bytes, as seen from this node.
type Direction string

const (
	In  Direction = "in"  // from the peer
	Out Direction = "out" // to the peer
)

// A Result is how a connection ended, as a metric's label.
type Result string

const (
	ResultOK             Result = "ok"              // both directions ended properly
	ResultReset          Result = "reset"           // one side aborted
	ResultTruncated      Result = "truncated"       // the stream broke off: its link died, or the peer gave it up
	ResultTimedOut       Result = "timed_out"       // dial, idle or half-close timeout
	ResultCut            Result = "cut"             // ended by drain or reload
	ResultDenied         Result = "denied"          // by policy, here or at the peer
	ResultUnknownService Result = "unknown_service" // the peer has no such service
	ResultRefused        Result = "refused"         // the target refused
	ResultUnreachable    Result = "unreachable"     // the target cannot be reached
	ResultNameNotFound   Result = "name_not_found"  // the target's name has no address
	ResultOverloaded     Result = "overloaded"      // a limit was reached
	ResultNoRoute        Result = "no_route"        // no route matches
	ResultNoLink         Result = "no_link"         // no link to the peer came up
	ResultBadRequest     Result = "bad_request"     // the app broke the listener's protocol or gave no valid user
)

// Results lists every Result, so that metrics can start at zero.
func Results() []Result {
	return []Result{
		ResultOK, ResultReset, ResultTruncated, ResultTimedOut, ResultCut, ResultDenied, ResultUnknownService,
		ResultRefused, ResultUnreachable, ResultNameNotFound, ResultOverloaded, ResultNoRoute, ResultNoLink, ResultBadRequest,
	}
}

// ViaService and ViaEgress are the via of streams from peers.
const (
	ViaService = "service"
	ViaEgress  = "egress"
)

// PeerDirect stands for a peer in metrics and logs of direct routes.
const PeerDirect = "direct"
