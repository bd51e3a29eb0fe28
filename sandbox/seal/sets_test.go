package seal

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

func (s span) has(protocol byte, a netip.Addr, port uint16) bool {
	return s.protocol == protocol && s.prefix.Contains(a) && s.first <= port && port <= s.last
}

// Layers cover what the spans cover, nothing else, and overlap nowhere.
func TestLayers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		var spans []span
		for range 1 + r.IntN(12) {
			bits := 24 + r.IntN(9)
			first := uint16(1 + r.IntN(20))
			spans = append(spans, span{
				protocol: []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[r.IntN(2)],
				prefix:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(16))}), bits).Masked(),
				first:    first, last: first + uint16(r.IntN(6)),
			})
		}
		out := layers(spans)
		for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			for last := range 20 {
				a := netip.AddrFrom4([4]byte{10, 0, 0, byte(last)})
				for port := range uint16(30) {
					want := false
					for _, s := range spans {
						want = want || s.has(protocol, a, port)
					}
					got := false
					for i, layer := range out {
						n := 0
						for _, s := range layer {
							if s.has(protocol, a, port) {
								n++
							}
						}
						if n > 1 {
							t.Fatalf("round %d: layer %d of %v holds %v:%d %d times", round, i, spans, a, port, n)
						}
						got = got || n > 0
					}
					if got != want {
						t.Fatalf("round %d: %v:%d is %v in %v, of %v", round, a, port, got, out, spans)
					}
				}
			}
		}
	}
}

// What is abroad is what a prefix has, less what lies on no way.
func TestAbroad(t *testing.T) {
	for _, c := range []struct {
		prefix string
		in     []string
		out    []string
	}{
		{"0.0.0.0/0", []string{"8.8.8.8", "10.0.0.1", "1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "169.253.255.255", "169.255.0.0"},
			[]string{"0.0.0.1", "127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255"}},
		{"169.254.169.254/32", []string{"169.254.169.254"}, []string{"169.254.169.253"}},
		{"127.0.0.0/8", nil, []string{"127.0.0.1"}},
		{"126.0.0.0/7", []string{"126.1.2.3"}, []string{"127.0.0.1"}},
		{"::/0", []string{"2001:db8::1", "fd00::1", "::2"}, []string{"::", "::1", "::ffff:8.8.8.8", "fe80::1", "ff02::1"}},
		{"192.0.2.0/24", []string{"192.0.2.0", "192.0.2.255"}, []string{"192.0.3.0"}},
	} {
		got := abroad(netip.MustParsePrefix(c.prefix))
		has := func(text string) bool {
			for _, p := range got {
				if p.Contains(netip.MustParseAddr(text)) {
					return true
				}
			}
			return false
		}
		for _, a := range c.in {
			if !has(a) {
				t.Errorf("%s lacks %s: %v", c.prefix, a, got)
			}
		}
		for _, a := range c.out {
			if has(a) {
				t.Errorf("%s has %s: %v", c.prefix, a, got)
			}
		}
	}
}

// Policies and hubs that say nothing sensible are refused.
func TestRefused(t *testing.T) {
	good := Hub{Generation: 1, RelayTCP: 1, RelayUDP: 1, Machines: []Machine{{Name: "a", Interface: "m0", V4: netip.MustParseAddr("10.0.0.1"), V6: netip.MustParseAddr("fd00::1")}}}
	allow := func(a sandbox.Allow) sandbox.Policy { return sandbox.Policy{Allows: []sandbox.Allow{a}} }
	all := netip.MustParsePrefix("0.0.0.0/0")
	for i, c := range []struct {
		policy sandbox.Policy
		change func(*Hub)
	}{
		{policy: allow(sandbox.Allow{Protocol: "sctp", Prefix: all, First: 1, Last: 1})},
		{policy: allow(sandbox.Allow{Protocol: "tcp", Prefix: all})},
		{policy: allow(sandbox.Allow{Protocol: "tcp", Prefix: all, First: 2, Last: 1})},
		{policy: allow(sandbox.Allow{Protocol: "tcp", First: 1, Last: 1})},
		{policy: allow(sandbox.Allow{Protocol: "tcp", Prefix: netip.MustParsePrefix("::ffff:1.2.3.0/120"), First: 1, Last: 1})},
		{policy: allow(sandbox.Allow{Protocol: "tcp", Prefix: all, First: 1, Last: 1, Condition: -1})},
		{change: func(h *Hub) { h.Generation = 0 }},
		{change: func(h *Hub) { h.Machines = []Machine{{Interface: "m0"}} }},
		{change: func(h *Hub) { h.Machines = []Machine{{Interface: "a name that is too long"}} }},
	} {
		h := good
		if c.change != nil {
			c.change(&h)
		}
		if r, err := CompileHub(c.policy, h); err == nil {
			t.Errorf("case %d compiles:\n%s", i, r)
		}
	}
}

// Dropped packets are counted together, and their distinct kinds are bounded.
func TestFlows(t *testing.T) {
	var f Flows
	to := netip.MustParseAddrPort("192.0.2.1:80")
	for i := range 3 {
		f.Add("m0", "eth0", "", Drop{Protocol: "tcp", Source: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(1000+i)), Destination: to})
	}
	f.AddFrame("m0", "eth0", Frame{"m0", unix.ETH_P_ARP}, 7, f.List()[0].First)
	f.AddFrame("m0", "eth0", Frame{"m0", unix.ETH_P_ARP}, 9, f.List()[0].First)
	got := f.List()
	if len(got) != 2 || got[0].Count != 3 || got[0].Destination != to || got[0].Source.Port() != 1000 || got[1].Protocol != "arp" || got[1].Count != 9 {
		t.Fatalf("got %v", got)
	}
	for i := range 10 * maxFlows {
		f.Add("m0", "eth0", "", Drop{Protocol: "udp", Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)})
	}
	var total int64
	got = f.List()
	for _, x := range got {
		total += x.Count
	}
	if len(got) > maxFlows+1 || total != 3+9+10*maxFlows {
		t.Errorf("%d flows with %d packets", len(got), total)
	}
}

// What is read from a packet's headers never panics, and says an address of
// one family and a known form of protocol.
func FuzzParsePacket(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 53, 0, 8, 0, 0})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 16, 0, 64}, make([]byte, 48)...))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 16, 44, 64}, make([]byte, 48)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, ok := ParsePacket(b)
		if !ok {
			return
		}
		if d.Source.Addr().Is4() != d.Destination.Addr().Is4() || d.Protocol == "" {
			t.Errorf("%x is read as %v", b, d)
		}
		if d.Destination.Port() != 0 && d.Protocol != "tcp" && d.Protocol != "udp" {
			t.Errorf("%x has a port: %v", b, d)
		}
	})
}
