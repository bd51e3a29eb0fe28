package gate

// OpenFlows returns how many flows of UDP and ICMP r carries.
func OpenFlows(r *Relay) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.epoch.flows)
}

// CheckWire holds that whatever a machine or a server sends, what goes on is one
// plain question or a plain answer within the bounds.
func CheckWire(t interface{ Errorf(string, ...any) }, b []byte) {
	w := library{}
	q, err := w.readQuestion(b)
	if err != nil {
		q = question{name: "a.example", kind: kindA}
	}
	out, err := w.ask(q)
	if err != nil {
		t.Errorf("asking %+v: %v", q, err)
		return
	}
	again, err := w.readQuestion(out)
	if err != nil || again != q {
		t.Errorf("asked %+v, read as %+v: %v", q, again, err)
	}
	r, err := w.readReply(q, b)
	if err != nil {
		r = reply{code: codeFailed}
	}
	if len(r.addrs) > maxAddrs || r.ttl > maxTTL {
		t.Errorf("a reply of %+v", r)
	}
	if q.kind != kindA && q.kind != kindAAAA {
		return
	}
	if out, err := w.answer(q, r); err != nil || len(out) > maxMessage {
		t.Errorf("an answer of %d bytes: %v", len(out), err)
	}
}
