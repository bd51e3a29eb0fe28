package agent

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// reach tries the destinations that follow its role, and ends at once.
func reach() {
	for _, arg := range os.Args[3:] {
		network, to, _ := strings.Cut(arg, "=")
		if network == "child" { // as a grandchild does
			if pid, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], os.Args[1], os.Args[2], to}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}}); err != nil {
				fmt.Println(err)
			} else {
				syscall.Wait4(pid, nil, 0, nil)
			}
			continue
		}
		if network == "unix" {
			if c, err := net.Dial("unix", to); err == nil {
				c.Close()
			}
			continue
		}
		a := netip.MustParseAddrPort(to)
		family, typ := unix.AF_INET, unix.SOCK_STREAM
		var sa unix.Sockaddr
		if a.Addr().Is4() {
			sa = &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
		} else {
			family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
		}
		if network != "tcp" {
			typ = unix.SOCK_DGRAM
		}
		fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			fmt.Println(err)
			continue
		}
		switch network {
		case "tcp", "udp":
			unix.Connect(fd, sa)
		case "sendto":
			unix.Sendto(fd, []byte("x"), 0, sa)
		case "sendmsg":
			unix.Sendmsg(fd, []byte("x"), nil, sa, 0)
		}
	}
}

// TestTried holds that programs are seen trying, however briefly they live.
func TestTried(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	absent := t.TempDir() + "/absent.sock"
	targets := []string{
		"tcp=192.0.2.1:81", "udp=192.0.2.2:82", "sendto=192.0.2.3:83", "sendmsg=192.0.2.4:84",
		"tcp=[2001:db8::1]:85", "sendto=[2001:db8::2]:86", "tcp=[::ffff:192.0.2.5]:87", "tcp=0.0.0.0:88",
		"unix=" + absent, "unix=@nobody-listens", "child=tcp=192.0.2.6:89",
	}
	want := []string{
		"tcp 192.0.2.1:81", "udp 192.0.2.2:82", "udp 192.0.2.3:83", "udp 192.0.2.4:84", "tcp [2001:db8::1]:85", "udp [2001:db8::2]:86",
		"tcp 192.0.2.5:87", "tcp 127.0.0.1:88", "unix " + absent, "unix @nobody-listens", "tcp 192.0.2.6:89",
	}
	variants(t, func(t *testing.T, m *machine) {
		c := m.helper(t, "reach")
		c.Argv = append(c.Argv, targets...)
		if out, errs, e := m.run(t, c); e.Code != 0 || out+errs != "" {
			t.Fatalf("%+v: %s%s", e, out, errs)
		}
		tried, err := m.Tried(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range tried.Attempts {
			if a.Protocol == "unix" {
				got = append(got, "unix "+a.Path)
			} else {
				got = append(got, a.Protocol+" "+a.To.String())
			}
			if a.Origin.Unit != "helper" || a.Origin.Exe != exe || a.Origin.PID == 0 || !slices.Contains(a.Origin.Argv, "AGENT-HELPER") || a.Count != 1 {
				t.Errorf("%+v", a)
			}
			if child := a.To.Port() == 89; child != (len(a.Origin.Parents) == 1) {
				t.Errorf("parents of %+v", a)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

// TestTriedMany holds that what is remembered is bounded, and that nothing
// stalls.
func TestTriedMany(t *testing.T) {
	w := &watcher{seen: map[attemptKey]*Attempt{}}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 2000 {
				w.add([]Attempt{{Protocol: "tcp", To: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(j >> 8), byte(j)}), 1)}}, time.Now())
			}
		})
	}
	all.Wait()
	if n := len(w.list()); n > maxAttempts || n < maxAttempts/2 {
		t.Errorf("%d are remembered", n)
	}
}

// TestTriedWaits holds that what happened before somebody asks is told, though it
// is still being noted, and that a program which holds that up is not waited for.
func TestTriedWaits(t *testing.T) {
	w := &watcher{seen: map[attemptKey]*Attempt{}, noting: map[uint64]struct{}{}}
	call := w.begin()
	go func() {
		time.Sleep(20 * time.Millisecond)
		w.add([]Attempt{{Protocol: "tcp"}}, time.Now())
		w.end(call)
	}()
	if got := w.list(); len(got) != 1 {
		t.Errorf("what was being noted is not told: %v", got)
	}
	w.begin() // and never ends
	if got := w.list(); len(got) != 1 {
		t.Errorf("beside one that is held up: %v", got)
	}
}

func TestAttribute(t *testing.T) {
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	to := netip.MustParseAddrPort("192.0.2.1:80")
	flow := sandbox.Flow{Machine: "m", Protocol: "tcp", Destination: to, Count: 10, First: at(10), Last: at(20)}
	attempt := func(exe string, n int64, first, last int) Attempt {
		return Attempt{Protocol: "tcp", To: to, Origin: sandbox.Origin{Exe: exe}, Count: n, First: at(first), Last: at(last)}
	}
	show := func(flows []sandbox.Flow) string {
		var b strings.Builder
		for _, f := range flows {
			exe := "?"
			if f.Origin != nil {
				exe = f.Origin.Exe
			}
			fmt.Fprintf(&b, "%s %d;", exe, f.Count)
		}
		return b.String()
	}
	for _, c := range []struct {
		tried []Attempt
		want  string
	}{
		{nil, "? 10;"},
		{[]Attempt{attempt("a", 3, 10, 19)}, "a 10;"},
		{[]Attempt{attempt("a", 3, 10, 19), attempt("b", 1, 15, 15)}, "a 8;b 2;"},
		{[]Attempt{attempt("early", 3, 0, 5)}, "? 10;"},
		{[]Attempt{attempt("late", 3, 30, 31), attempt("a", 1, 9, 9)}, "a 10;"},
	} {
		if got := show(Attribute("m", []sandbox.Flow{flow}, c.tried)); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
	if got := show(Attribute("other", []sandbox.Flow{flow}, []Attempt{attempt("a", 3, 10, 19)})); got != "? 10;" {
		t.Error(got)
	}
	web := flow
	web.Protocol = "https"
	if got := show(Attribute("m", []sandbox.Flow{web}, []Attempt{attempt("a", 3, 10, 19)})); got != "a 10;" {
		t.Error(got)
	}
	// Two programs ask the same server for different names.
	ask := func(name string, port uint16) sandbox.Flow {
		return sandbox.Flow{Machine: "m", Protocol: "dns", Name: name, Source: netip.AddrPortFrom(netip.IPv4Unspecified(), port), Destination: to, Count: 1, First: at(10), Last: at(11)}
	}
	asker := func(exe string, port uint16) Attempt {
		a := attempt(exe, 1, 10, 11)
		a.Protocol, a.Ports = "udp", []uint16{port}
		return a
	}
	if got := show(Attribute("m", []sandbox.Flow{ask("x", 7), ask("y", 8)}, []Attempt{asker("b", 8), asker("a", 7)})); got != "a 1;b 1;" {
		t.Error(got)
	}
	got := Attribute("m", nil, []Attempt{{Protocol: "unix", Path: "/run/x.sock", Origin: sandbox.Origin{Exe: "a"}, Count: 2, First: at(1), Last: at(2)}})
	if len(got) != 1 || got[0].Path != "/run/x.sock" || got[0].Count != 2 || got[0].Origin == nil {
		t.Errorf("%+v", got)
	}
}

// What listens is read from the kernel's own list, on a machine whose bytes run
// from low to high.
func TestListening(t *testing.T) {
	for line, want := range map[string]string{
		"   0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1": "tcp 127.0.0.1:9000",
		"   0: 0100007F:2328 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1": "",
		"   1: 00000000000000000000000001000000:2329 00000000000000000000000000000000:0000 0A 0:0":     "tcp [::1]:9001",
		"   2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0":     "tcp [::]:80",
		"  sl  local_address rem_address   st tx_queue rx_queue":                                       "",
		"   1: zz:0050 0:0 0A": "",
	} {
		got := ""
		if l, ok := parseListener("tcp", []byte(line)); ok {
			got = l.Protocol + " " + l.At.String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		listens, to string
		want        bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true}, {"127.0.0.1:80", "[::1]:80", false}, {"127.0.0.1:80", "127.0.0.1:81", false},
		{"0.0.0.0:80", "127.0.0.1:80", true}, {"0.0.0.0:80", "[::1]:80", false}, {"[::]:80", "[::1]:80", true}, {"[::]:80", "127.0.0.1:80", true},
	} {
		l := Listener{Protocol: "tcp", At: at(c.listens)}
		if l.Takes("tcp", at(c.to)) != c.want || l.Takes("udp", at(c.to)) {
			t.Errorf("%s takes %s: %t", c.listens, c.to, !c.want)
		}
		// The same on the machine itself, on another one, and somewhere else.
		own, other := netip.MustParseAddr("198.18.0.10"), netip.MustParseAddr("198.18.0.11")
		flows := []sandbox.Flow{
			{Machine: "a", Protocol: "tcp", Destination: at(c.to)},
			{Machine: "b", Protocol: "tcp", Destination: netip.AddrPortFrom(own, at(c.to).Port())},
			{Machine: "b", Protocol: "tcp", Destination: netip.AddrPortFrom(other, at(c.to).Port())},
			{Machine: "b", Protocol: "tcp", Destination: at("192.0.2.1:80")},
		}
		Idle(flows, []string{"a", "b"}, [][]netip.Addr{{own}, {other}}, []*Tried{{Listening: []Listener{l}}, nil})
		anywhere := l.At.Addr().IsUnspecified() && l.At.Port() == at(c.to).Port()
		if flows[0].Idle == c.want || flows[1].Idle == anywhere || flows[2].Idle || flows[3].Idle {
			t.Errorf("%s, %s: %t %t %t %t", c.listens, c.to, flows[0].Idle, flows[1].Idle, flows[2].Idle, flows[3].Idle)
		}
	}
}
