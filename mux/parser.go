package mux

// A parser takes a stream's frames apart as they arrive, in whatever pieces.
// It belongs to the link's reader.
type parser struct {
	order     frameOrder
	header    [frameHeaderLen]byte
	headerLen int
	kind      byte   // of the frame whose body is coming, 0: none
	left      int    // bytes of it that have not come
	body      []byte // what has come, of all but DATA; under the Stream's mu
	spent     int    // bytes that no event has accounted for yet
}

// check is receiver's: it finds a frame that may not be where it is before any
// of its body is looked at.
func (s *Stream) check(p []byte, events []event) ([]event, error) {
	a := &s.parser
	for len(p) > 0 {
		if a.kind == 0 {
			n := copy(a.header[a.headerLen:], p)
			a.headerLen += n
			a.spent += n
			p = p[n:]
			if a.headerLen < frameHeaderLen {
				break
			}
			if err := a.begin(); err != nil {
				return events, err
			}
			continue
		}
		n := min(a.left, len(p))
		a.left -= n
		if a.kind == frameData {
			events = append(events, event{flow: s.flow, kind: frameData, body: p[:n], spent: a.spent})
			a.spent = 0
			if a.left == 0 {
				a.kind = 0
			}
		} else if body, ok := s.gather(p[:n]); !ok {
			break // aborted
		} else if a.left == 0 {
			e, err := a.end(s.flow, body)
			if err != nil {
				return events, err
			}
			events = append(events, e)
		}
		p = p[n:]
	}
	return events, nil
}

// begin checks a header.
func (a *parser) begin() error {
	kind, length, err := parseFrameHeader(a.header)
	if err == nil {
		err = a.order.next(kind, length)
	}
	if err != nil {
		return err
	}
	a.kind, a.left, a.headerLen = kind, length, 0
	return nil
}

// gather adds to the body of a frame other than DATA, and returns all of it,
// which is the caller's once it is whole. An aborted stream keeps nothing.
func (s *Stream) gather(p []byte) (body []byte, ok bool) {
	a := &s.parser
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return nil, false
	}
	a.spent += len(p)
	a.body = append(a.body, p...)
	body = a.body
	if a.left == 0 {
		a.body = nil
	}
	return body, true
}

// end makes an event of a whole frame other than DATA.
func (a *parser) end(f *flow, body []byte) (event, error) {
	e := event{flow: f, kind: a.kind, body: body, spent: a.spent}
	a.spent = 0
	a.kind = 0
	if e.kind == frameEnd {
		return e, a.order.end(e.body)
	}
	return e, nil
}
