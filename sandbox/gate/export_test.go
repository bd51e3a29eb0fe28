package gate

import (
	"bufio"
	"bytes"
	"net/http"
	"path"
	"strings"

	"bj/sandbox"
)

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

// CheckRequest holds that what passes is below the path, however it is read.
func CheckRequest(t interface{ Errorf(string, ...any) }, b []byte) {
	if _, _, _, err := readHello(bufio.NewReader(bytes.NewReader(b))); err == nil && len(b) == 0 {
		t.Errorf("nothing was read as a greeting")
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return
	}
	rules := []sandbox.Allow{{HTTP: &sandbox.HTTP{Host: "pkgs.internal", Path: "/stable", Methods: []string{"GET"}}}}
	if allowRequest(rules, r, false, 80) == nil {
		return
	}
	host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
	clean := path.Clean(r.URL.Path)
	if r.Method != "GET" || strings.TrimSuffix(host, ".") != "pkgs.internal" || clean != "/stable" && !strings.HasPrefix(clean, "/stable/") {
		t.Errorf("%s %s %s passes", r.Method, r.Host, r.RequestURI)
	}
}
