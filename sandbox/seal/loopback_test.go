package seal_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/fleet"
	"bj/sandbox"
	"bj/sandbox/seal"
	"bj/sandbox/seal/sealtest"
)

// Inside a machine, only what is internal or allowed on loopback passes there,
// on all addresses of the machine's own.
func TestLoopback(t *testing.T) {
	n := sealtest.New(t, 1)
	m, ns := n.Config.Machines[0], n.Machines[0]
	p := sandbox.Policy{
		Internal: []fleet.Ports{ports("tcp", 1000, 1000), ports("udp", 1000, 1001)},
		Allows: []sandbox.Allow{
			{Condition: 1, Protocol: "tcp", Prefix: prefix("127.0.0.1/32"), First: 2000, Last: 2000},
			{Condition: 1, Protocol: "udp", Prefix: prefix("::1/128"), First: 2000, Last: 2000},
			{Condition: 5, Protocol: "tcp", Prefix: prefix("0.0.0.0/0"), First: 2500, Last: 2500},
			{Condition: 6, Protocol: "tcp", Prefix: prefix("127.0.0.0/8"), First: 2600, Last: 2600, Machines: []string{"another"}},
		},
	}
	table := apply(t, ns, compileMachine(t, p, m))
	seen := watch(t, ns, 8)
	lo4, lo6, lo42 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.0.2")
	for _, a := range []netip.Addr{lo4, lo6, lo42, m.V4, m.V6} {
		echo(ns, a.String(), 1000, 2000, 2500, 2600, 3000)
	}
	for _, c := range []struct {
		network string
		to      netip.Addr
		port    int
		open    bool
	}{
		{"tcp", lo4, 1000, true}, {"tcp", lo6, 1000, true}, {"tcp", lo42, 1000, true}, {"tcp", m.V4, 1000, true}, {"tcp", m.V6, 1000, true},
		{"udp", lo4, 1000, true}, {"udp", lo6, 1000, true}, {"udp", m.V4, 1000, true}, {"udp", m.V6, 1000, true},
		{"tcp", lo4, 2000, true}, {"udp", lo6, 2000, true}, {"tcp", m.V4, 2500, true},
		{"tcp", lo6, 2000, false}, {"tcp", lo42, 2000, false}, {"udp", lo4, 2000, false}, {"tcp", m.V4, 2000, false},
		{"tcp", lo4, 2500, false}, {"tcp", lo4, 2600, false},
		{"tcp", lo4, 3000, false}, {"tcp", lo6, 3000, false}, {"udp", lo4, 3000, false}, {"udp", lo6, 3000, false},
		{"tcp", m.V4, 3000, false}, {"udp", m.V6, 3000, false},
	} {
		what := fmt.Sprintf("%s %s", c.network, join(c.to, c.port))
		timeout := brief
		if c.open {
			timeout = soon
		}
		err := reach(ns, c.network, join(c.to, c.port), 3000, timeout)
		switch {
		case c.open && err != nil:
			t.Errorf("%s: %v", what, err)
		case !c.open && !timedOut(err):
			t.Errorf("%s is not silent: %v", what, err)
		case !c.open:
			seen.want(t, what, func(d seal.Drop) bool {
				return d.In == "lo" && d.Protocol == c.network && d.Destination == netip.AddrPortFrom(c.to, uint16(c.port)) && d.Reason == "closed"
			})
		}
	}
	// Open ports where nobody listens are refused as ever.
	if _, err := ns.Dial("tcp", "127.0.0.3:1000", soon); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("an open TCP port without a listener: %v", err)
	}
	if err := reach(ns, "udp", "127.0.0.1:1001", 1, soon); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("an open UDP port without a listener: %v", err)
	}
	c, err := table.Counters()
	if err != nil {
		t.Fatal(err)
	}
	used := c.Used()
	if len(used) != 2 || used[0].Condition != 1 || used[0].Count != 2 || used[1].Condition != 5 || used[1].Count != 1 || used[0].Bytes < 2*6000 || used[0].Bytes > 2*8000 {
		t.Errorf("used %v", used)
	}
}

// Sealing again cuts what was open on loopback.
func TestReplaceCutsLoopback(t *testing.T) {
	n := sealtest.New(t, 1)
	ns, m := n.Machines[0], seal.Inside{Machine: n.Config.Machines[0], Generation: 1, Group: 8}
	p := sandbox.Policy{Internal: []fleet.Ports{ports("tcp", 1000, 1000)}}
	echo(ns, "127.0.0.1", 1000)
	before, err := ns.Dial("tcp", "127.0.0.1:1000", soon)
	if err != nil {
		t.Fatal(err)
	}
	say(t, before, nil)
	rules, err := seal.CompileMachine(p, m)
	if err != nil {
		t.Fatal(err)
	}
	table := apply(t, ns, rules)
	say(t, before, timedOut)
	between, err := ns.Dial("tcp", "127.0.0.1:1000", soon)
	if err != nil {
		t.Fatal(err)
	}
	say(t, between, nil)
	m.Generation++
	if rules, err = seal.CompileMachine(p, m); err != nil {
		t.Fatal(err)
	}
	if err := table.Replace(rules); err != nil {
		t.Fatal(err)
	}
	say(t, between, timedOut)
	if err := reach(ns, "tcp", "127.0.0.1:1000", 10, soon); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A local source port that is open does not open others.
func TestLoopbackSourcePort(t *testing.T) {
	n := sealtest.New(t, 1)
	ns := n.Machines[0]
	apply(t, ns, compileMachine(t, sandbox.Policy{Internal: []fleet.Ports{ports("tcp", 1000, 1000), ports("udp", 1000, 1000)}}, n.Config.Machines[0]))
	echo(ns, "127.0.0.1", 3000)
	for _, network := range []string{"tcp", "udp"} {
		var c net.Conn
		err := ns.Do(func() (err error) {
			var local net.Addr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1000}
			if network == "udp" {
				local = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1000}
			}
			c, err = (&net.Dialer{LocalAddr: local, Timeout: brief}).Dial(network, "127.0.0.1:3000")
			return err
		})
		if network == "tcp" {
			if !timedOut(err) {
				t.Errorf("tcp: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		say(t, c, timedOut)
		c.Close()
	}
}

// Multicasts that a machine sends do not come back to it.
func TestMulticastStaysDark(t *testing.T) {
	n := sealtest.New(t, 1)
	ns := n.Machines[0]
	apply(t, ns, compileMachine(t, sandbox.Policy{}, n.Config.Machines[0]))
	apply(t, n.Hub, compile(t, sandbox.Policy{}, n.Config))
	seen := watch(t, ns, 8)
	var c *net.UDPConn
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251).To4(), Port: 5353}
	ns.Must(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err = net.ListenMulticastUDP("udp4", ifi, group)
		return err
	})
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1) })
	if err != nil {
		t.Fatal(err)
	}
	c.WriteToUDP([]byte("hello"), group)
	seen.want(t, "a multicast", func(d seal.Drop) bool {
		return d.In == "eth0" && d.Destination == group.AddrPort() && d.Reason == "closed"
	})
	c.SetReadDeadline(time.Now().Add(brief))
	if k, _, err := c.ReadFromUDP(make([]byte, 10)); !timedOut(err) {
		t.Errorf("%d bytes came back: %v", k, err)
	}
}

// Root in a machine can neither remove the rules nor get around them with
// rules of its own that rewrite packets.
func TestRootInside(t *testing.T) {
	sealtest.Need(t)
	for _, tool := range []string{"nft", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	// A process that is root of a user namespace, with a network of its own.
	cmd := exec.Command("cat") // lives as long as its input
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("user namespaces are not to be had: %v", err)
	}
	defer func() { input.Close(); cmd.Wait() }()
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	ns := sealtest.Open(t, file)
	ns.Up()
	m := seal.Machine{Name: "m0", Interface: "m0", V4: netip.MustParseAddr("10.77.0.1"), V6: netip.MustParseAddr("fd77::1")}
	table := apply(t, ns, compileMachine(t, sandbox.Policy{Internal: []fleet.Ports{ports("tcp", 1000, 1000)}}, m))
	echo(ns, "127.0.0.1", 3000) // nobody listens on the open port, for now
	asRoot := func(args ...string) error {
		out, err := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(cmd.Process.Pid), "-U", "-n", "--preserve-credentials"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	held := func(when string) {
		t.Helper()
		if err := reach(ns, "tcp", "127.0.0.1:3000", 10, brief); !timedOut(err) {
			t.Errorf("%s: a closed port: %v", when, err)
		}
	}
	held("before")
	for _, c := range []string{"flush ruleset", "delete table inet bj_machine", "flush table inet bj_machine", "add rule inet bj_machine output accept",
		"insert rule inet bj_machine loopback_out accept", "add chain inet bj_machine output { policy accept ; }"} {
		err := asRoot("nft", c)
		if err == nil && c != "flush ruleset" { // which skips what it may not touch
			t.Errorf("nft %s went through", c)
		}
		held(c)
	}
	// Rules that rewrite an allowed port to a closed one, before and after ours.
	for i, c := range []string{
		"type nat hook output priority 2147483647 ; meta l4proto tcp tcp dport 1000 dnat to 127.0.0.1:3000",
		"type filter hook output priority 2147483647 ; tcp dport 1000 tcp dport set 3000",
		"type filter hook postrouting priority 0 ; tcp dport 1000 tcp dport set 3000",
		"type filter hook prerouting priority 0 ; tcp dport 1000 tcp dport set 3000",
		"type filter hook input priority 2147483647 ; tcp dport 1000 tcp dport set 3000",
		"type nat hook prerouting priority -100 ; tcp dport 1000 redirect to :3000",
	} {
		hook, rule, _ := strings.Cut(c, " ; ")
		script := fmt.Sprintf("table ip own%d { chain c { %s; %s; }; }", i, hook, rule)
		if err := asRoot("nft", script); err != nil {
			t.Logf("%s: %v", script, err) // this kernel cannot: nothing to hold
			continue
		}
		for range 2 { // before and after our rules are replaced
			err := reach(ns, "tcp", "127.0.0.1:1000", 10, brief)
			if err == nil {
				t.Errorf("%s gets through to a closed port", script)
			}
			if err := table.Replace(table.Rules()); err != nil {
				t.Fatal(err)
			}
		}
		if err := asRoot("nft", fmt.Sprintf("delete table ip own%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	echo(ns, "127.0.0.1", 1000)
	if err := reach(ns, "tcp", "127.0.0.1:1000", 10, soon); err != nil {
		t.Errorf("an open port, in the end: %v", err)
	}
	held("in the end")
}

// The rules of a machine stay when their owner is gone, where the kernel can.
func TestOwnerGone(t *testing.T) {
	n := sealtest.New(t, 1)
	ns := n.Machines[0]
	echo(ns, "127.0.0.1", 3000)
	table := apply(t, ns, compileMachine(t, sandbox.Policy{}, n.Config.Machines[0]))
	if !table.Persists() {
		t.Skip("the kernel removes a table with its owner")
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	if err := reach(ns, "tcp", "127.0.0.1:3000", 10, brief); !timedOut(err) {
		t.Errorf("a closed port: %v", err)
	}
}
