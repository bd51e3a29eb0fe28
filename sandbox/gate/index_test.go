package gate

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"bj/sandbox"
)

// The index finds what a walk over all allows would.
func TestIndex(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	own := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.3"): true}
	machines := []string{"a", "b"}
	protocols := []string{"tcp", "udp", "icmp"}
	for round := range 200 {
		var p sandbox.Policy
		for i := range 1 + r.IntN(10) {
			a := sandbox.Allow{Condition: (i * 7) % 5, Protocol: protocols[r.IntN(3)],
				Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(8))}), 24+r.IntN(9)), First: uint16(r.IntN(10)), Last: uint16(5 + r.IntN(10))}
			if r.IntN(3) == 0 {
				a.Machines = machines[:1]
			}
			p.Allows = append(p.Allows, a)
		}
		x := newIndex(p, own)
		for range 200 {
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(10))}), uint16(r.IntN(18)))
			machine, protocol := machines[r.IntN(2)], protocols[r.IntN(3)]
			condition, ok := 0, false
			for _, a := range p.Allows {
				if a.Protocol == protocol && a.Prefix.Contains(to.Addr()) && (protocol == "icmp" || a.First <= to.Port() && to.Port() <= a.Last) &&
					(len(a.Machines) == 0 || slices.Contains(a.Machines, machine)) && !own[to.Addr()] && (!ok || a.Condition < condition) {
					condition, ok = a.Condition, true
				}
			}
			if c, k := x.find(machine, "", protocol, to); c != condition || k != ok {
				t.Fatalf("round %d: %s %s %v: %d %v, want %d %v of %v", round, machine, protocol, to, c, k, condition, ok, p.Allows)
			}
		}
	}
}

func TestIndexNowhere(t *testing.T) {
	var p sandbox.Policy
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		p.Allows = append(p.Allows, sandbox.Allow{Protocol: "tcp", Prefix: netip.MustParsePrefix(all), First: 1, Last: 65535})
	}
	x := newIndex(p, map[netip.Addr]bool{netip.MustParseAddr("10.0.0.1"): true})
	for text, want := range map[string]bool{
		"8.8.8.8": true, "2001:db8::1": true, "fd00::1": true, "10.0.0.2": true,
		"10.0.0.1": false, "127.0.0.1": false, "::1": false, "0.0.0.0": false, "0.1.2.3": false, "169.254.169.254": false,
		"224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false, "fe80::1": false, "ff02::1": false, "::ffff:8.8.8.8": false, "::": false,
	} {
		if _, ok := x.find("m", "", "tcp", netip.AddrPortFrom(netip.MustParseAddr(text), 80)); ok != want {
			t.Errorf("%s: %v", text, ok)
		}
	}
	if _, ok := x.find("", "", "tcp", netip.MustParseAddrPort("8.8.8.8:80")); ok {
		t.Error("a source that is no machine's may connect")
	}
}

// What is read from a held packet is of one family, and whole.
func FuzzParse(f *testing.F) {
	f.Add(append([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 53, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2}, make([]byte, 6)...))
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 8, 0, 0, 0, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(b)
		if !ok {
			return
		}
		if p.pair.from.Addr().Is4() != p.pair.to.Addr().Is4() {
			t.Errorf("%x is read as %v", b, p)
		}
		if p.echo != nil && (len(p.echo) < echoHeader || p.pair.to.Port() != 0) {
			t.Errorf("%x is read as %v", b, p)
		}
	})
}

// The reply that a machine gets is whole, has its own identifier, and sums up.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 2, 3, 4, 5}, uint16(7), false)
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 1}, uint16(7), false)
	f.Add([]byte{129, 0, 0, 0, 1, 2, 3, 4, 5}, uint16(7), true)
	f.Fuzz(func(t *testing.T, b []byte, id uint16, v6 bool) {
		out, ok := answer(b, id, v6)
		if !ok {
			return
		}
		if !bytes.HasSuffix(b, out[6:]) || out[4] != byte(id>>8) || out[5] != byte(id) {
			t.Errorf("%x becomes %x", b, out)
		}
		if !v6 && checksum(out) != 0 {
			t.Errorf("%x does not sum up", out)
		}
	})
}
