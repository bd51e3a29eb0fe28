package gate_test

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"bj/sandbox"
	"bj/sandbox/gate"
	"bj/sandbox/seal"
)

// darken closes conditions of a setting again.
func (s *setting) darken(p sandbox.Policy) {
	s.t.Helper()
	rules, err := seal.CompileHub(p, s.Config)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.table.Replace(rules); err != nil {
		s.t.Fatal(err)
	}
	if err := s.relay.Darken(p); err != nil {
		s.t.Fatal(err)
	}
}

func echoes(c net.Conn) error {
	c.SetDeadline(time.Now().Add(brief))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 10))
	return err
}

// What goes dark is silent, also for connections that are open; all others stay.
func TestDarken(t *testing.T) {
	a, b := allow("tcp", outside4+"/32", 1000, 1000), allow("tcp", outside4+"/32", 1500, 1500)
	u := allow("udp", outside4+"/32", 1000, 1000)
	b.Condition, u.Condition = 1, 0
	p := sandbox.Policy{Allows: []sandbox.Allow{a, b, u}}
	s := newSetting(t, 2, p, nil)
	s.echoServer("tcp", join(outside4, 1000))
	s.echoServer("tcp", join(outside4, 1500))
	s.echoPackets("udp", join(outside4, 1000))
	type end struct {
		machine  int
		network  string
		port     int
		survives bool
	}
	ends := []end{{0, "tcp", 1000, false}, {0, "tcp", 1500, true}, {1, "tcp", 1000, true}, {0, "udp", 1000, false}, {1, "udp", 1000, true}}
	var conns []net.Conn
	for _, e := range ends {
		c, err := s.Machines[e.machine].Dial(e.network, join(outside4, e.port), soon)
		if err != nil {
			t.Fatal(err)
		}
		if err := echoes(c); err != nil {
			t.Fatalf("%v: %v", e, err)
		}
		conns = append(conns, c)
	}
	p.Dark = []sandbox.Dark{{Condition: 0, Machines: []string{s.Config.Machines[0].Name}}}
	s.darken(p)
	for i, e := range ends {
		err := echoes(conns[i])
		if e.survives && err != nil || !e.survives && !timedOut(err) {
			t.Errorf("%v, open before: %v", e, err)
		}
		if e.network == "tcp" {
			_, err := s.Machines[e.machine].Dial("tcp", join(outside4, e.port), brief)
			if e.survives && err != nil || !e.survives && !timedOut(err) {
				t.Errorf("%v, anew: %v", e, err)
			}
		}
	}
}

// server is a name server of the world, which notes what it is asked.
type server struct {
	mu    sync.Mutex
	asked []string // raw questions, in hex
	names []string
}

func (s *setting) server(address string) *server {
	srv := &server{}
	for _, c := range []net.PacketConn{s.world.ListenPacket("udp", address)} {
		go func() {
			b := make([]byte, 4096)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				var m dns.Msg
				if m.Unpack(b[:n]) != nil || len(m.Question) != 1 {
					continue
				}
				srv.mu.Lock()
				srv.asked = append(srv.asked, hex.EncodeToString(b[:n]))
				srv.names = append(srv.names, m.Question[0].Name)
				srv.mu.Unlock()
				var r dns.Msg
				r.SetReply(&m)
				q := m.Question[0]
				rr := func(text string) {
					x, err := dns.NewRR(text)
					if err != nil {
						panic(err)
					}
					r.Answer = append(r.Answer, x)
				}
				switch {
				case strings.HasPrefix(q.Name, "alias."):
					rr(q.Name + " 5 IN CNAME secret-data.elsewhere.example.")
					rr("secret-data.elsewhere.example. 5 IN A 10.1.1.2")
					rr("other.example. 5 IN A 10.6.6.6")
				case strings.HasPrefix(q.Name, "none."):
					r.Rcode = dns.RcodeNameError
				case strings.HasPrefix(q.Name, "mute."):
					continue
				case q.Qtype == dns.TypeA:
					rr(q.Name + " 5 IN A 10.1.1.1")
					rr(q.Name + " 5 IN TXT \"smuggled\"")
					x, _ := dns.NewRR("hidden.example. 5 IN TXT \"smuggled\"")
					r.Extra = append(r.Extra, x)
					r.Ns = append(r.Ns, x)
				}
				out, _ := r.Pack()
				c.WriteTo(out, from)
			}
		}()
	}
	return srv
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

type unanswered struct {
	mu  sync.Mutex
	all []gate.Question
}

func (u *unanswered) names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []string
	for _, q := range u.all {
		out = append(out, q.Name)
	}
	return out
}

func namesSetting(t *testing.T) (*setting, *server, *unanswered) {
	p := sandbox.Policy{Names: []sandbox.Names{{Condition: 3, Pattern: "*.pkgs.internal",
		Servers: []sandbox.Server{{Network: "udp", Addr: netip.MustParseAddrPort(outside4 + ":53")}}}}}
	u := &unanswered{}
	s := newSetting(t, 1, p, func(c *gate.Config) {
		c.Unanswered = func(q gate.Question) { u.mu.Lock(); u.all = append(u.all, q); u.mu.Unlock() }
	})
	return s, s.server(outside4 + ":53"), u
}

func (s *setting) ask(b []byte, family int, wait time.Duration) (*dns.Msg, []byte, error) {
	a := s.Config.Gateway4
	if family == 6 {
		a = s.Config.Gateway6
	}
	c, err := s.Machines[0].Dial("udp", netip.AddrPortFrom(a, 53).String(), soon)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	c.Write(b)
	out := make([]byte, 4096)
	n, err := c.Read(out)
	if err != nil {
		return nil, nil, err
	}
	var m dns.Msg
	return &m, out[:n], m.Unpack(out[:n])
}

func message(name string, kind uint16, change func(*dns.Msg)) []byte {
	var m dns.Msg
	m.SetQuestion(name, kind)
	if change != nil {
		change(&m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// What is allowed is answered, with addresses and nothing else.
func TestNames(t *testing.T) {
	s, srv, u := namesSetting(t)
	for _, family := range []int{4, 6} {
		m, raw, err := s.ask(message("A.pkgs.internal.", dns.TypeA, nil), family, soon)
		if err != nil {
			t.Fatalf("family %d: %v", family, err)
		}
		if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.1.1.1" || m.Answer[0].Header().Name != "a.pkgs.internal." {
			t.Errorf("answer is %v", m)
		}
		if strings.Contains(string(raw), "smuggled") || len(m.Ns)+len(m.Extra) != 0 {
			t.Errorf("more than addresses came in: %v", m)
		}
	}
	m, raw, err := s.ask(message("alias.pkgs.internal.", dns.TypeA, nil), 4, soon)
	if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.1.1.2" || strings.Contains(string(raw), "secret") {
		t.Errorf("an alias: %v, %v", m, err)
	}
	if m, _, err := s.ask(message("none.pkgs.internal.", dns.TypeA, nil), 4, soon); err != nil || m.Rcode != dns.RcodeNameError {
		t.Errorf("a name that is not there: %v, %v", m, err)
	}
	if m, _, err := s.ask(message("a.pkgs.internal.", dns.TypeAAAA, nil), 4, soon); err != nil || len(m.Answer) != 0 || m.Rcode != 0 {
		t.Errorf("no address of that kind: %v, %v", m, err)
	}
	if _, _, err := s.ask(message("mute.pkgs.internal.", dns.TypeA, nil), 4, 2*brief); !timedOut(err) {
		t.Errorf("a server that says nothing: %v", err)
	}
	if got := s.relay.Asked(s.Config.Machines[0].Name, netip.MustParseAddr("10.1.1.2")); got != "alias.pkgs.internal" {
		t.Errorf("10.1.1.2 came of %q", got)
	}
	if got := u.names(); len(got) != 0 {
		t.Errorf("unanswered: %q", got)
	}
	for _, use := range s.relay.Used() {
		if use.Condition != 3 || use.Count != 6 || use.Bytes == 0 {
			t.Errorf("used %+v", use)
		}
	}
	if srv.count() == 0 {
		t.Error("the server was not asked")
	}
}

// attacks are ways to get something to the server, or from it, that is no
// question for an address of an allowed name.
func TestNamesAttacks(t *testing.T) {
	s, srv, u := namesSetting(t)
	edns := func(o dns.EDNS0) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(4096, true)
			m.IsEdns0().Option = append(m.IsEdns0().Option, o)
		}
	}
	ok := "a.pkgs.internal."
	txt, _ := dns.NewRR("x.pkgs.internal. 1 IN TXT \"carried\"")
	for name, b := range map[string][]byte{
		"another name":        message("www.example.org.", dns.TypeA, nil),
		"the suffix itself":   message("pkgs.internal.", dns.TypeA, nil),
		"a longer suffix":     message("a.pkgs.internal.evil.example.", dns.TypeA, nil),
		"a suffix in a label": message("apkgs.internal.", dns.TypeA, nil),
		"a dot in a label":    message(`a\.pkgs.internal.`, dns.TypeA, nil),
		"bytes in a label":    message(`\000\255.pkgs.internal.`, dns.TypeA, nil),
		"TXT":                 message(ok, dns.TypeTXT, nil),
		"NULL":                message(ok, dns.TypeNULL, nil),
		"ANY":                 message(ok, dns.TypeANY, nil),
		"AXFR":                message("pkgs.internal.", dns.TypeAXFR, nil),
		"CNAME":               message(ok, dns.TypeCNAME, nil),
		"MX":                  message(ok, dns.TypeMX, nil),
		"another class":       message(ok, dns.TypeA, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"two questions":       message(ok, dns.TypeA, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"no question":         message(ok, dns.TypeA, func(m *dns.Msg) { m.Question = nil }),
		"an answer":           message(ok, dns.TypeA, func(m *dns.Msg) { m.Answer = append(m.Answer, txt) }),
		"an authority":        message(ok, dns.TypeA, func(m *dns.Msg) { m.Ns = append(m.Ns, txt) }),
		"a reply":             message(ok, dns.TypeA, func(m *dns.Msg) { m.Response = true }),
		"an update":           message(ok, dns.TypeA, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }),
		"a notification":      message(ok, dns.TypeA, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
		"too long":            message(ok, dns.TypeA, edns(&dns.EDNS0_PADDING{Padding: make([]byte, 600)})),
		"no message":          []byte("GET / HTTP/1.0\r\n\r\n"),
		"cut off":             message(ok, dns.TypeA, nil)[:15],
		"empty":               {},
	} {
		if _, raw, err := s.ask(b, 4, brief/4); !timedOut(err) {
			t.Errorf("%s: answered with %x, %v", name, raw, err)
		}
	}
	if n := srv.count(); n != 0 {
		t.Errorf("the server heard %d of them: %q", n, srv.names)
	}
	if n := len(u.names()); n < 22 {
		t.Errorf("%d were recorded", n)
	}
	// What rides on an allowed question stays behind.
	for _, change := range []func(*dns.Msg){
		edns(&dns.EDNS0_PADDING{Padding: []byte("carried")}),
		edns(&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("carried")}),
		edns(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString([]byte("carried!"))}),
		func(m *dns.Msg) { m.Extra = append(m.Extra, txt) },
		func(m *dns.Msg) { m.Zero, m.AuthenticatedData, m.CheckingDisabled = true, true, true },
	} {
		if _, _, err := s.ask(message("a.PkGs.InTeRnAl.", dns.TypeA, change), 4, soon); err != nil {
			t.Errorf("an allowed question: %v", err)
		}
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for _, raw := range srv.asked {
		if raw[4:] != srv.asked[0][4:] {
			t.Errorf("questions differ in more than their number:\n%s\n%s", raw, srv.asked[0])
		}
	}
	if len(srv.asked) < 5 {
		t.Errorf("%d questions", len(srv.asked))
	}
}

// Without the relay a question is as silent as one that is not allowed.
func TestNamesClosed(t *testing.T) {
	s, _, _ := namesSetting(t)
	s.relay.Close()
	if _, _, err := s.ask(message("a.pkgs.internal.", dns.TypeA, nil), 4, brief); !timedOut(err) {
		t.Errorf("got %v", err)
	}
}

func FuzzNames(f *testing.F) {
	f.Add(message("a.pkgs.internal.", dns.TypeA, nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { gate.CheckWire(t, b) })
}
