package agent

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"bj/sandbox"
)

// network gives the test's machine a loopback and a link that swallows
// everything.
func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	sink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "sink"}, PeerName: "drain"}
	if err := netlink.LinkAdd(sink); err != nil {
		return err
	}
	drain, err := netlink.LinkByName("drain")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(drain); err != nil {
		return err
	}
	if err := netlink.LinkSetARPOff(sink); err != nil {
		return err
	}
	for _, a := range []string{"10.9.0.1/24", "fd09::1/64"} {
		ip, n, err := net.ParseCIDR(a)
		if err != nil {
			return err
		}
		// Without duplicate address detection, which takes a second.
		if err := netlink.AddrAdd(sink, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: n.Mask}, Flags: 0x02}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(sink)
}

func TestProbes(t *testing.T) {
	to := netip.MustParseAddrPort
	host := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 0) }
	m := newMachine(t, false)
	// Something that answers, behind an abstract Unix socket.
	listener, err := m.Start(testContext(t), m.helper(t, "listen"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Kill(testContext(t))
	eventually(t, "listening", func() bool {
		out, err := m.Probe(testContext(t), []Probe{{Kind: ProbeUnix, Name: "agent-test"}})
		return err == nil && out[0].State == Connected
	})
	for _, c := range []struct {
		name string
		Probe
		first, later Outcome
	}{
		{"silence", Probe{Kind: ProbeTCP, To: to("10.9.0.2:443")}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"silence, v6", Probe{Kind: ProbeTCP, To: to("[fd09::2]:443")}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"no route", Probe{Kind: ProbeTCP, To: to("192.0.2.1:443")}, Outcome{Refused, "ENETUNREACH"}, Outcome{Refused, "ENETUNREACH"}},
		{"closed port", Probe{Kind: ProbeTCP, To: to("127.0.0.1:1")}, Outcome{State: Sent}, Outcome{Answered, "ECONNREFUSED"}},
		{"open port", Probe{Kind: ProbeTCP, To: to("127.0.0.1:4711")}, Outcome{State: Sent}, Outcome{State: Connected}},
		{"datagram", Probe{Kind: ProbeUDP, To: to("10.9.0.2:53")}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"datagram, closed port", Probe{Kind: ProbeUDP, To: to("127.0.0.1:1")}, Outcome{State: Sent}, Outcome{Answered, "ECONNREFUSED"}},
		{"multicast", Probe{Kind: ProbeUDP, To: to("224.0.0.251:5353")}, Outcome{Refused, "ENETUNREACH"}, Outcome{Refused, "ENETUNREACH"}},
		{"multicast, v6", Probe{Kind: ProbeUDP, To: to("[ff02::fb]:5353"), Interface: "sink"}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"broadcast", Probe{Kind: ProbeUDP, To: to("10.9.0.255:67")}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"echo", Probe{Kind: ProbeICMP, To: host("10.9.0.2")}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"echo, v6", Probe{Kind: ProbeICMP, To: host("fd09::2")}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"echo of loopback", Probe{Kind: ProbeICMP, To: host("127.0.0.1")}, Outcome{State: Sent}, Outcome{State: Answered}},
		{"echo of loopback, v6", Probe{Kind: ProbeICMP, To: host("::1")}, Outcome{State: Sent}, Outcome{State: Answered}},
		{"SCTP", Probe{Kind: ProbeIP, To: host("10.9.0.2"), Protocol: 132}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"GRE, v6", Probe{Kind: ProbeIP, To: host("fd09::2"), Protocol: 47}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"frame", Probe{Kind: ProbeEther, Interface: "sink", Protocol: 0x88cc}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"frame on nothing", Probe{Kind: ProbeEther, Interface: "none", Protocol: 0x88cc}, Outcome{Refused, "ENODEV"}, Outcome{Refused, "ENODEV"}},
		{"who has", Probe{Kind: ProbeARP, Interface: "sink", To: host("10.9.0.2")}, Outcome{State: Sent}, Outcome{State: Sent}},
		{"abstract socket", Probe{Kind: ProbeUnix, Name: "agent-test"}, Outcome{State: Connected}, Outcome{State: Connected}},
		{"no such socket", Probe{Kind: ProbeUnix, Name: "agent-test-no"}, Outcome{Refused, "ECONNREFUSED"}, Outcome{Refused, "ECONNREFUSED"}},
		{"vsock", Probe{Kind: ProbeVsock, CID: 2, Port: 1}, Outcome{Refused, "EAFNOSUPPORT"}, Outcome{Refused, "EAFNOSUPPORT"}},
		{"xdp", Probe{Kind: ProbeXDP}, Outcome{Refused, "EAFNOSUPPORT"}, Outcome{Refused, "EAFNOSUPPORT"}},
		{"no such kind", Probe{Kind: "x"}, Outcome{Refused, "EINVAL"}, Outcome{Refused, "EINVAL"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := m.Probe(testContext(t), []Probe{c.Probe})
			if err != nil || len(out) != 1 {
				t.Fatalf("%v, %v", out, err)
			}
			// Loopback may answer before the first look.
			if out[0] != c.first && out[0] != c.later {
				t.Errorf("at first %+v, want %+v", out[0], c.first)
			}
			out, err = m.Probed(testContext(t))
			if err != nil || len(out) != 1 || out[0] != c.later {
				t.Errorf("later %+v, %v, want %+v", out, err, c.later)
			}
		})
	}
	// Everything is closed, and forgotten.
	if out, err := m.Probed(testContext(t)); err != nil || len(out) != 0 {
		t.Errorf("%v, %v", out, err)
	}
}

// Frames that are sent arrive as they should.
func TestProbeFrames(t *testing.T) {
	m := newMachine(t, false)
	tr := newTranscript()
	p, err := m.Start(testContext(t), m.helper(t, "sniff"), tr.write)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "listening", func() bool { return tr.String(sandbox.Stdout) == "ready\n" })
	_, err = m.Probe(testContext(t), []Probe{
		{Kind: ProbeARP, Interface: "sink", To: netip.MustParseAddrPort("10.9.0.2:0")},
		{Kind: ProbeEther, Interface: "sink", Protocol: 0x88cc},
	})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(testContext(t)); err != nil || e.Code != 0 {
		t.Fatalf("%+v %v", e, err)
	}
	want := "ready\nffffffffffff 0806 00010800060400010a090001" + "0000000000000a090002\nffffffffffff 88cc 626a2063616e617279\n"
	if got := tr.String(sandbox.Stdout); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
