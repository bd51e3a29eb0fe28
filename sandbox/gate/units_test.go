package gate_test

import (
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/gate"
	"bj/sandbox/seal/sealtest"
)

// as dials as the unit of a number does whose machine writes it into packets,
// from a port if that is not 0.
func (s *setting) as(number, port int, network, address string) (net.Conn, error) {
	var c net.Conn
	err := s.Machines[0].Do(func() (err error) {
		d := net.Dialer{Timeout: brief, Control: func(_, _ string, raw syscall.RawConn) error {
			var failed error
			err := raw.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TOS, number<<2)
			})
			if failed != nil {
				return failed
			}
			return err
		}}
		if port != 0 {
			d.LocalAddr = &net.UDPAddr{Port: port}
		}
		c, err = d.Dial(network, address)
		return err
	})
	return c, err
}

// What is for one unit is open to nobody else: names, connections, datagrams, also
// from a port that the other one has just let go.
func TestUnits(t *testing.T) {
	tcp, udp := allow("tcp", outside4+"/32", 1000, 1000), allow("udp", outside4+"/32", 1000, 1000)
	tcp.Condition, tcp.Units = 1, []string{"a"}
	udp.Condition, udp.Units = 2, []string{"b"}
	p := sandbox.Policy{Units: []string{"a", "b", "c"}, Allows: []sandbox.Allow{tcp, udp}, Names: []sandbox.Names{
		{Condition: 0, Units: []string{"a"}, Pattern: "*.pkgs.internal", Servers: []sandbox.Server{{Network: "udp", Addr: netip.MustParseAddrPort(outside4 + ":53")}}}}}
	var mu sync.Mutex
	silent := map[string]int{} // by unit
	s := newSetting(t, 1, p, func(c *gate.Config) {
		c.Unanswered = func(q gate.Question) { mu.Lock(); silent[q.Unit]++; mu.Unlock() }
	})
	srv := s.server(outside4 + ":53")
	s.echoServer("tcp", join(outside4, 1000))
	s.echoPackets("udp", join(outside4, 1000))
	question := func(number int) error {
		c, err := s.as(number, 0, "udp", join(sealtest.Gateway4.String(), 53))
		if err != nil {
			return err
		}
		defer c.Close()
		q := new(dns.Msg).SetQuestion("www.pkgs.internal.", dns.TypeA)
		b, err := q.Pack()
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(brief))
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 512))
		return err
	}
	exchange := func(number, port int, network string) error {
		c, err := s.as(number, port, network, join(outside4, 1000))
		if err != nil {
			return err
		}
		defer c.Close()
		return echoes(c)
	}
	for _, x := range []struct {
		number         int
		names, tcp, ud bool
	}{{1, true, true, false}, {2, false, false, true}, {3, false, false, false}, {0, false, false, false}, {63, false, false, false}} {
		for what, err := range map[string]error{"names": question(x.number), "tcp": exchange(x.number, 0, "tcp"), "udp": exchange(x.number, 0, "udp")} {
			open := what == "names" && x.names || what == "tcp" && x.tcp || what == "udp" && x.ud
			if open && err != nil || !open && !timedOut(err) {
				t.Errorf("%s of unit %d: %v", what, x.number, err)
			}
		}
	}
	for _, x := range []struct {
		number int
		open   bool
	}{{2, true}, {1, false}, {0, false}, {2, true}} {
		if err := exchange(x.number, 5555, "udp"); x.open && err != nil || !x.open && !timedOut(err) {
			t.Errorf("the same port of unit %d: %v", x.number, err)
		}
	}
	if srv.count() != 1 {
		t.Errorf("the server was asked %d times", srv.count())
	}
	mu.Lock()
	defer mu.Unlock()
	if silent["a"] != 0 || silent["b"] != 1 || silent["c"] != 1 || silent[""] != 2 {
		t.Errorf("unanswered, by unit: %v", silent)
	}
	for _, u := range s.relay.Used() {
		if u.Condition < 2 && u.Count != 1 || u.Condition == 2 && u.Count == 0 {
			t.Errorf("used: %+v", u)
		}
	}
}
