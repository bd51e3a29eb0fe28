package sandboxtest

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bj/sandbox"
)

func sealTests() []test {
	return []test{
		{"dark", testDark},
		{"internal ports", testInternal},
		{"allows", testAllows},
		{"handshakes", testHandshakes},
		{"sealing again", testReseal},
		{"flows", testFlows},
		{"canaries", testCanaries},
		{"canaries notice holes", testHoles},
		{"dialling in", testDialIn},
		{"rules", testRules},
	}
}

// dials asks a list of "NETWORK,ADDR" from m, and returns the answers by it.
func dials(t testing.TB, m sandbox.Machine, ms int, targets ...string) map[string]string {
	t.Helper()
	r := guest(t, m, append([]string{"dials", fmt.Sprint(ms)}, targets...)...)
	r.wait()
	answers := map[string]string{}
	for _, line := range r.lines() {
		target, answer, _ := strings.Cut(line, " ")
		answers[target] = answer
	}
	if len(answers) != len(targets) {
		t.Fatalf("%d answers to %d questions: %s", len(answers), len(targets), r.output())
	}
	return answers
}

// expect compares answers with what is wanted of each target.
func expect(t testing.TB, m sandbox.Machine, ms int, want map[string]string) {
	t.Helper()
	got := dials(t, m, ms, slices.Sorted(maps.Keys(want))...)
	for _, target := range slices.Sorted(maps.Keys(want)) {
		if got[target] != want[target] {
			t.Errorf("%s: %s: %q, want %q", m.Name(), target, got[target], want[target])
		}
	}
}

// server starts a server on all addresses and several ports of a machine.
func server(t testing.TB, m sandbox.Machine, ports ...int) *running {
	t.Helper()
	args := []string{"serve"}
	for _, p := range ports {
		args = append(args, fmt.Sprint(p))
	}
	r := guest(t, m, args...)
	r.await("ready")
	return r
}

// silence is how long a machine waits for what must not come, in ms. Too short
// a time makes no test fail.
const silence = 400

func testDark(t *testing.T, s *suite) {
	o := s.outside(t)
	spec := s.spec(2)
	spec.Dial = o.dial
	env := s.lease(t, spec)
	s.seal(t, env, sandbox.Policy{})
	mark := s.wire.mark(t)
	a, b := env.Machines()[0], env.Machines()[1]
	heard := []*running{server(t, a, openPort, darkPort), server(t, b, openPort, darkPort)}
	want := map[string]string{}
	for _, addr := range []string{
		"127.0.0.1:9000", "127.9.9.9:9000", "[::1]:9000", "198.18.0.10:9000", "[fd62:6a::10]:9000",
		"198.18.0.11:9000", "[fd62:6a::11]:9000", "198.18.0.11:7000", "198.18.0.12:9000",
		"198.18.255.254:1", "[fd62:6a::ffff]:1", "192.0.2.1:443", "198.51.100.7:53", "[2001:db8::1]:443",
		fmt.Sprintf("203.0.113.1:%d", o.dark4), fmt.Sprintf("[2001:db8:fe::1]:%d", o.dark4), fmt.Sprintf("127.0.0.1:%d", o.dark4),
		"169.254.169.254:80", "10.0.0.1:80", "172.17.0.1:2375", "192.168.1.1:53", "[fe80::1%eth0]:9000", "[64:ff9b::c000:201]:80", "[2002:c000:201::1]:80",
	} {
		want["tcp,"+addr] = "silent"
		want["udp,"+addr] = "silent"
	}
	want[fmt.Sprintf("udp,203.0.113.1:%d", o.darkU)] = "silent"
	for _, addr := range []string{"224.0.0.1:5353", "224.0.0.251:5353", "239.1.2.3:9000", "255.255.255.255:67", "198.18.255.255:9000", "[ff02::1%eth0]:9000", "[ff02::fb%eth0]:5353", "[ff02::1:2%eth0]:547", "[ff01::1%lo]:9000", "[ff05::1%eth0]:9000"} {
		want["udp,"+addr] = "silent"
	}
	got := dials(t, a, silence, slices.Sorted(maps.Keys(want))...)
	for _, target := range slices.Sorted(maps.Keys(want)) {
		// What the machine's own kernel has no way for is as dark as it gets.
		if g := got[target]; g != "silent" && !strings.Contains(g, "unreachable") && !strings.Contains(g, "permission denied") && !strings.Contains(g, "cannot assign") && !strings.Contains(g, "invalid argument") {
			t.Errorf("%s: %q", target, g)
		}
	}
	for _, r := range heard {
		if strings.Contains(r.output(), "heard") {
			t.Errorf("a server in the dark heard something: %s", r.output())
		}
	}
	if d := o.dialled(); len(d) > 0 {
		t.Errorf("the relay dialled %q", d)
	}
	if found := s.wire.strange(t, mark); len(found) > 0 {
		t.Errorf("packets on the host's network:\n\t%s", printable(found))
	}
	// Names: neither answered nor asked outside.
	if out, exit := sh(t, a, "timeout 3 getent hosts www.example.com"); exit.Code == 0 {
		t.Errorf("a name was resolved: %s", out)
	}
	// Inside itself a machine is whole: processes talk through files and pipes.
	must(t, a, "mkfifo /tmp/p; echo x > /tmp/p & cat /tmp/p > /dev/null")
}

func testInternal(t *testing.T, s *suite) {
	env := s.sealed(t, 2, open())
	a, b := env.Machines()[0], env.Machines()[1]
	server(t, a, openPort, openUDP, darkPort)
	server(t, b, openPort, openUDP, darkPort)
	want := map[string]string{}
	for _, addr := range []string{"127.0.0.1", "[::1]", "198.18.0.10", "[fd62:6a::10]", "198.18.0.11", "[fd62:6a::11]", "localhost", "m-0", "m-1"} {
		want[fmt.Sprintf("tcp,%s:%d", addr, openPort)] = "answered echo hello"
		want[fmt.Sprintf("udp,%s:%d", addr, openUDP)] = "answered echo hello"
		want[fmt.Sprintf("tcp,%s:%d", addr, openUDP)] = "silent"
		want[fmt.Sprintf("udp,%s:%d", addr, openPort)] = "silent"
		want[fmt.Sprintf("tcp,%s:%d", addr, darkPort)] = "silent"
		want[fmt.Sprintf("udp,%s:%d", addr, darkPort)] = "silent"
		want[fmt.Sprintf("tcp,%s:%d", addr, openPort-1)] = "silent"
	}
	for _, m := range env.Machines() {
		expect(t, m, 1500, want)
	}
	// What is open between machines is open nowhere else.
	expect(t, a, silence, map[string]string{"tcp,192.0.2.1:7000": "silent", "tcp,198.18.0.12:7000": "silent", "tcp,[2001:db8::1]:7000": "silent"})
	// Nobody listens: the port is open, and so the refusal comes through.
	env2 := s.sealed(t, 2, open())
	r := dials(t, env2.Machines()[0], 2000, "tcp,198.18.0.11:7000", "tcp,127.0.0.1:7000", "tcp,[fd62:6a::11]:7000")
	for target, answer := range r {
		if answer != "refused" {
			t.Errorf("an open port without a listener: %s: %q", target, answer)
		}
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// allows are used by several tests.
func allows() []sandbox.Allow {
	return []sandbox.Allow{
		{Condition: 0, Protocol: "tcp", Prefix: prefix("192.0.2.10/32"), First: 443, Last: 443},
		{Condition: 1, Protocol: "tcp", Prefix: prefix("192.0.2.20/32"), First: 8000, Last: 8010},
		{Condition: 2, Protocol: "udp", Prefix: prefix("192.0.2.10/32"), First: 53, Last: 53},
		{Condition: 3, Protocol: "tcp", Prefix: prefix("2001:db8:1::10/128"), First: 443, Last: 443},
		{Condition: 3, Protocol: "udp", Prefix: prefix("2001:db8:1::10/128"), First: 53, Last: 53},
		{Condition: 4, Protocol: "tcp", Prefix: prefix("192.0.2.64/28"), First: 80, Last: 80},
		{Condition: 5, Protocol: "icmp", Prefix: prefix("192.0.2.10/32")},
		{Condition: 5, Protocol: "icmp", Prefix: prefix("2001:db8:1::10/128")},
		{Condition: 6, Protocol: "tcp", Prefix: prefix("192.0.2.30/32"), First: 443, Last: 443, Machines: []string{"m-1"}},
		{Condition: 7, Protocol: "tcp", Prefix: prefix("127.0.0.1/32"), First: 9100, Last: 9100},
		{Condition: 8, Protocol: "tcp", Prefix: prefix("198.18.0.11/32"), First: 9200, Last: 9200},
		{Condition: 9, Protocol: "tcp", Prefix: prefix("192.0.2.99/32"), First: 443, Last: 443}, // never used
	}
}

func testAllows(t *testing.T, s *suite) {
	o := s.outside(t)
	spec := s.spec(2)
	spec.Dial = o.dial
	env := s.lease(t, spec)
	s.seal(t, env, sandbox.Policy{Allows: allows()})
	mark := s.wire.mark(t)
	a, b := env.Machines()[0], env.Machines()[1]
	server(t, a, 9100, 9200, darkPort)
	heard := server(t, b, 9100, 9200, darkPort)
	yes, no := "answered outside hello", "silent"
	expect(t, a, 2000, map[string]string{
		"tcp,192.0.2.10:443":  yes,
		"tcp,192.0.2.10:444":  no,
		"tcp,192.0.2.10:442":  no,
		"udp,192.0.2.10:443":  no, // beside an allowed TCP port
		"tcp,192.0.2.10:53":   no, // beside an allowed UDP port
		"tcp,192.0.2.11:443":  no, // neighbours
		"tcp,192.0.2.9:443":   no,
		"udp,192.0.2.10:53":   yes,
		"udp,192.0.2.11:53":   no,
		"udp,192.0.2.10:54":   no,
		"tcp,192.0.2.20:8000": yes, "tcp,192.0.2.20:8010": yes, "tcp,192.0.2.20:7999": no, "tcp,192.0.2.20:8011": no,
		"tcp,[2001:db8:1::10]:443": yes, "udp,[2001:db8:1::10]:53": yes,
		"tcp,[2001:db8:1::11]:443": no, "tcp,[2001:db8:1::10]:80": no, "udp,[2001:db8:1::11]:53": no,
		"tcp,192.0.2.63:80": no, "tcp,192.0.2.64:80": yes, "tcp,192.0.2.79:80": yes, "tcp,192.0.2.80:80": no,
		"tcp,192.0.2.30:443": no, // another machine's
		"tcp,127.0.0.1:9100": "answered echo hello", "tcp,127.0.0.1:9200": no, "tcp,[::1]:9100": no, "tcp,198.18.0.10:9100": no,
		"tcp,198.18.0.11:9200": "answered echo hello", "tcp,198.18.0.11:9100": no, "tcp,[fd62:6a::11]:9200": no,
		fmt.Sprintf("tcp,127.0.0.1:%d", o.tcp.Port()):  no, // the server itself
		fmt.Sprintf("tcp,203.0.113.1:%d", o.dark4):     no,
		fmt.Sprintf("tcp,198.18.0.11:%d", darkPort):    no,
		"tcp,[::ffff:192.0.2.10]:443":                  yes, // the same address, written otherwise
		"tcp,[::ffff:192.0.2.11]:443":                  no,
		fmt.Sprintf("tcp,198.18.255.254:%d", o.dark4):  no,
		fmt.Sprintf("tcp,[fd62:6a::ffff]:%d", o.dark4): no,
		"tcp,198.18.255.254:1":                         no, "udp,198.18.255.254:1": no, // where the relay listens
	})
	expect(t, b, 2000, map[string]string{
		"tcp,192.0.2.30:443": yes, "tcp,192.0.2.10:443": yes, "tcp,198.18.0.10:9200": no,
		"tcp,198.18.0.11:9200": "answered echo hello", // its own address
	})
	for target, want := range map[string]string{"192.0.2.10": "answered", "2001:db8:1::10": "answered", "192.0.2.11": "silent", "198.18.0.11": "silent", "2001:db8:1::11": "silent", "127.0.0.1": "silent"} {
		r := guest(t, a, "ping", target, "1500")
		r.wait()
		if got := strings.TrimSpace(r.output()); got != want {
			t.Errorf("ping %s: %q, want %q", target, got, want)
		}
	}
	allowed := []string{
		"tcp 192.0.2.10:443", "tcp 192.0.2.20:8000", "tcp 192.0.2.20:8010", "udp 192.0.2.10:53", "tcp [2001:db8:1::10]:443", "udp [2001:db8:1::10]:53",
		"tcp 192.0.2.64:80", "tcp 192.0.2.79:80", "icmp 192.0.2.10:0", "icmp [2001:db8:1::10]:0", "tcp 192.0.2.30:443",
	}
	d := o.dialled()
	for _, want := range allowed {
		if !slices.Contains(d, want) {
			t.Errorf("nobody dialled %s: %q", want, d)
		}
	}
	for _, got := range d {
		if !slices.Contains(allowed, got) {
			t.Errorf("the relay dialled %s", got)
		}
	}
	if out := heard.output(); strings.Contains(out, ":9100") || strings.Contains(out, ":9000") {
		t.Errorf("a server in the dark heard something: %s", out)
	}
	if found := s.wire.strange(t, mark); len(found) > 0 {
		t.Errorf("packets on the host's network:\n\t%s", printable(found))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	missing := ""
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(missing)
		}
	})
	eventually(t, "the use of every condition is counted", func() bool {
		used, err := env.Used(ctx)
		if err != nil {
			t.Fatal(err)
		}
		counts := map[int]int64{}
		for _, u := range used {
			counts[u.Condition] += u.Count
		}
		// 0: twice from m-0 (once mapped), once from m-1; 8: from m-0, and from m-1 to itself.
		for condition, want := range map[int]int64{0: 3, 1: 2, 2: 1, 3: 2, 4: 2, 5: 2, 6: 1, 7: 1, 8: 2, 9: 0} {
			if counts[condition] != want {
				missing = fmt.Sprintf("condition %d was used %d times, want %d", condition, counts[condition], want)
				return false
			}
		}
		return true
	})
}

func testHandshakes(t *testing.T, s *suite) {
	o := s.outside(t)
	o.refuse("192.0.2.41")
	o.silence("192.0.2.42")
	spec := s.spec(1)
	spec.Dial = o.dial
	env := s.lease(t, spec)
	s.seal(t, env, sandbox.Policy{Allows: []sandbox.Allow{
		{Protocol: "tcp", Prefix: prefix("192.0.2.40/29"), First: 443, Last: 443},
		{Protocol: "udp", Prefix: prefix("192.0.2.40/29"), First: 53, Last: 53},
	}})
	m := env.Machines()[0]
	expect(t, m, 1500, map[string]string{
		"tcp,192.0.2.40:443": "answered outside hello",
		"tcp,192.0.2.41:443": "refused", // refused there, refused here
		"tcp,192.0.2.42:443": "silent",  // silent there, silent here
		"udp,192.0.2.42:53":  "silent",
		"udp,192.0.2.40:53":  "answered outside hello",
	})
	// Bytes in either direction, ends in either direction.
	big := strings.Repeat("x", 1<<16)
	for range 3 {
		r := guest(t, m, "ask", "tcp", "192.0.2.40:443", "5000", big)
		r.wait()
		if r.output() != "answered outside "+big+"\n" {
			t.Fatalf("%d bytes came back instead of %d", len(r.output()), len(big)+18)
		}
	}
	r := guest(t, m, "hold", "tcp", "192.0.2.40:443")
	r.await("holding")
}

func testReseal(t *testing.T, s *suite) {
	o := s.outside(t)
	spec := s.spec(2)
	spec.Dial = o.dial
	env := s.lease(t, spec)
	wide := open()
	wide.Allows = allows()
	s.seal(t, env, wide)
	a, b := env.Machines()[0], env.Machines()[1]
	server(t, a, openPort, openUDP)
	server(t, b, openPort, openUDP)
	var cut, kept []*running
	hold := func(network, addr string) *running {
		r := guest(t, a, "hold", network, addr)
		r.await("holding")
		return r
	}
	cut = append(cut, hold("tcp", "192.0.2.10:443"), hold("udp", "192.0.2.10:53"), hold("tcp", "[2001:db8:1::10]:443"), hold("udp", "198.18.0.11:7001"), hold("udp", "127.0.0.1:7001"))
	// TCP between machines and within them.
	narrowCut := []*running{hold("tcp", "198.18.0.11:7000"), hold("tcp", "[fd62:6a::11]:7000"), hold("tcp", "127.0.0.1:7000"), hold("tcp", "[::1]:7000"), hold("tcp", "198.18.0.10:7000")}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// A connection from outside, as a supplier gets it.
	in, err := env.Dial(ctx, "tcp", netip.MustParseAddrPort("198.18.0.11:7000"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	fmt.Fprintln(in, "before")
	if line, err := bufio.NewReader(in).ReadString('\n'); err != nil || line != "echo before\n" {
		t.Fatalf("%q %v", line, err)
	}
	// Narrower: TCP 443 of one address stays, all else goes.
	s.seal(t, env, sandbox.Policy{Allows: []sandbox.Allow{{Condition: 4, Protocol: "tcp", Prefix: prefix("192.0.2.64/28"), First: 80, Last: 80}}})
	for _, r := range append(cut, narrowCut...) {
		r.wait()
		if !strings.Contains(r.output(), "cut: ") {
			t.Errorf("a connection survived: %s", r.output())
		}
	}
	expect(t, a, silence, map[string]string{
		"tcp,192.0.2.10:443": "silent", "udp,192.0.2.10:53": "silent", "tcp,198.18.0.11:7000": "silent", "tcp,127.0.0.1:7000": "silent", "udp,127.0.0.1:7001": "silent",
	})
	expect(t, a, 2000, map[string]string{"tcp,192.0.2.64:80": "answered outside hello"})
	// A connection that the narrower policy still allows is cut as well, since no
	// connection made before the seal survives it; it can be made anew.
	kept = append(kept, hold("tcp", "192.0.2.65:80"))
	s.seal(t, env, sandbox.Policy{})
	for _, r := range kept {
		r.wait()
	}
	expect(t, a, silence, map[string]string{"tcp,192.0.2.64:80": "silent"})
	in.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprintln(in, "after")
	if line, err := bufio.NewReader(in).ReadString('\n'); err == nil {
		t.Errorf("a connection from outside survived two seals: %q", line)
	}
}

func testFlows(t *testing.T, s *suite) {
	env := s.sealed(t, 2, open())
	a := env.Machines()[0]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	begin := time.Now().Add(-time.Minute)
	dials(t, a, silence, "tcp,192.0.2.1:443", "udp,192.0.2.2:53", "tcp,[2001:db8::9]:443", "tcp,127.0.0.1:9000", "udp,[::1]:9000", "tcp,198.18.0.11:9000", "udp,198.18.0.11:9000")
	for range 3 {
		guest(t, a, "ping", "192.0.2.3", "1").wait()
	}
	guest(t, a, "ping", "2001:db8::3", "1").wait()
	must(t, env.Machines()[1], toolPath+" "+guestCommand+" dials 100 udp,192.0.2.77:5000 udp,192.0.2.77:5000 udp,192.0.2.77:5000")
	want := []struct {
		machine, link, protocol, to string
		count                       int64
	}{
		{"m-0", "eth0", "tcp", "192.0.2.1:443", 1},
		{"m-0", "eth0", "udp", "192.0.2.2:53", 1},
		{"m-0", "eth0", "tcp", "[2001:db8::9]:443", 1},
		{"m-0", "lo", "tcp", "127.0.0.1:9000", 1},
		{"m-0", "lo", "udp", "[::1]:9000", 1},
		{"m-0", "eth0", "tcp", "198.18.0.11:9000", 1},
		{"m-0", "eth0", "udp", "198.18.0.11:9000", 1},
		{"m-0", "eth0", "icmp", "192.0.2.3:0", 3},
		{"m-0", "eth0", "icmpv6", "[2001:db8::3]:0", 1},
		{"m-1", "eth0", "udp", "192.0.2.77:5000", 3},
	}
	if s.root {
		must(t, a, toolPath+" "+guestCommand+" raw")
		want = append(want, struct {
			machine, link, protocol, to string
			count                       int64
		}{"m-0", "eth0", "ip/132", "192.0.2.4:0", 2})
	}
	var flows []sandbox.Flow
	missing := ""
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(missing)
		}
	})
	eventually(t, "all attempts are reported", func() bool {
		var err error
		if flows, err = env.Blocked(ctx); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			n := int64(0)
			for _, f := range flows {
				if f.Machine == w.machine && f.Interface == w.link && f.Protocol == w.protocol && f.Destination == netip.MustParseAddrPort(w.to) {
					n += f.Count
				}
			}
			// TCP asks again by itself.
			if n < w.count || w.protocol != "tcp" && n != w.count {
				if missing = fmt.Sprintf("%v was seen %d times", w, n); n > w.count {
					t.Fatal(missing)
				}
				return false
			}
		}
		return true
	})
	seen := map[string]bool{}
	for i, f := range flows {
		if f.First.Before(begin) || f.Last.Before(f.First) || f.First.After(time.Now()) || f.Count < 1 {
			t.Errorf("%+v", f)
		}
		if i > 0 && f.First.Before(flows[i-1].First) {
			t.Errorf("flow %d is out of order", i)
		}
		if v4, v6 := machineAddrs(int(f.Machine[2] - '0')); f.Interface == "eth0" && f.Source.IsValid() && f.Source.Addr() != v4 && f.Source.Addr() != v6 {
			t.Errorf("a source that is not the machine's: %+v", f)
		}
		key := fmt.Sprint(f.Machine, f.Interface, f.Protocol, f.Destination, f.Name)
		if seen[key] {
			t.Errorf("the same attempt is two flows: %s", key)
		}
		seen[key] = true
	}
}

func testCanaries(t *testing.T, s *suite) {
	for name, p := range map[string]sandbox.Policy{
		"dark": {}, "open": open(), "allows": {Internal: open().Internal, Allows: allows()},
		"wide": {Allows: []sandbox.Allow{{Protocol: "tcp", Prefix: prefix("0.0.0.0/0"), First: 1, Last: 65535}, {Protocol: "udp", Prefix: prefix("::/0"), First: 1, Last: 65535}}},
	} {
		t.Run(name, func(t *testing.T) {
			o := s.outside(t)
			spec := s.spec(2)
			spec.Dial = o.dial
			env := s.lease(t, spec)
			s.seal(t, env, p)
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			for range 2 { // before the steps, and after them
				canaries, err := env.Canaries(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if len(canaries) < 10 {
					t.Errorf("only %d canaries", len(canaries))
				}
				for _, c := range canaries {
					if !c.Held {
						t.Errorf("%s: %s: %s", c.Machine, c.Probe, c.Detail)
					}
				}
			}
			if flows, err := env.Blocked(ctx); err != nil || len(flows) > 0 {
				t.Errorf("canaries are reported as attempts: %+v %v", flows, err)
			}
			if used, err := env.Used(ctx); err != nil || slices.ContainsFunc(used, func(u sandbox.Use) bool { return u.Count > 0 }) {
				t.Errorf("canaries are counted as use: %+v %v", used, err)
			}
			if d := o.dialled(); len(d) > 0 {
				t.Errorf("canaries were dialled: %q", d)
			}
		})
	}
}

// testHoles: a canary that cannot fail proves nothing.
func testHoles(t *testing.T, s *suite) {
	for _, name := range slices.Sorted(maps.Keys(s.opts.Holes)) {
		t.Run(name, func(t *testing.T) {
			env := s.sealed(t, 2, sandbox.Policy{})
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			s.opts.Holes[name](t, env)
			canaries, err := env.Canaries(ctx)
			if err != nil {
				return // that is a leak, too: nobody takes it for a good seal
			}
			for _, c := range canaries {
				if !c.Held {
					t.Logf("noticed by %s %s: %s", c.Machine, c.Probe, c.Detail)
					return
				}
			}
			t.Errorf("all %d canaries hold", len(canaries))
		})
	}
}

func testDialIn(t *testing.T, s *suite) {
	env := s.sealed(t, 2, open())
	server(t, env.Machines()[1], openPort, openUDP)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range []struct{ network, addr string }{
		{"tcp", "198.18.0.11:7000"}, {"tcp", "[fd62:6a::11]:7000"}, {"udp", "198.18.0.11:7001"}, {"udp", "[fd62:6a::11]:7001"},
	} {
		conn, err := env.Dial(ctx, c.network, netip.MustParseAddrPort(c.addr))
		if err != nil {
			t.Errorf("%s %s: %v", c.network, c.addr, err)
			continue
		}
		conn.SetDeadline(time.Now().Add(patience))
		if _, ok := conn.(interface{ File() (f any, err error) }); ok {
			t.Error("no descriptor")
		}
		fmt.Fprintln(conn, "hello")
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || line != "echo hello\n" {
			t.Errorf("%s %s: %q %v", c.network, c.addr, line, err)
		}
		conn.Close()
	}
	short, cancelShort := context.WithTimeout(ctx, time.Second)
	defer cancelShort()
	if conn, err := env.Dial(short, "tcp", netip.MustParseAddrPort("192.0.2.1:443")); err == nil {
		conn.Close()
		t.Error("dialling in reached an address that no machine has")
	}
}

func testRules(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{Internal: open().Internal, Allows: allows()})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rules, err := env.Rules(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"192.0.2.10", "7000", "8000", "2001:db8:1::10"} {
		if !strings.Contains(rules, want) {
			t.Errorf("the rules say nothing of %s:\n%s", want, rules)
		}
	}
}
