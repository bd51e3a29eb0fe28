package seal

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// span is what one allow opens, in terms of the packet filter: addresses of
// one prefix and ports from first to last. Those of ICMP have no ports.
type span struct {
	protocol    byte
	prefix      netip.Prefix
	first, last uint16
}

// spanOf translates an allow. The prefix is as it was written.
func spanOf(a sandbox.Allow) (span, error) {
	s := span{prefix: a.Prefix.Masked(), first: a.First, last: a.Last}
	if !a.Prefix.IsValid() || a.Prefix.Addr().Is4In6() {
		return s, fmt.Errorf("compiling an allow: %v is not a prefix of IPv4 or IPv6", a.Prefix)
	}
	switch a.Protocol {
	case "tcp":
		s.protocol = unix.IPPROTO_TCP
	case "udp":
		s.protocol = unix.IPPROTO_UDP
	case "icmp":
		s.protocol, s.first, s.last = unix.IPPROTO_ICMP, 0, 0
		if a.Prefix.Addr().Is6() {
			s.protocol = unix.IPPROTO_ICMPV6
		}
		return s, nil
	default:
		return s, fmt.Errorf("compiling an allow of %v: unknown protocol %q", a.Prefix, a.Protocol)
	}
	if s.first == 0 || s.first > s.last {
		return s, fmt.Errorf("compiling an allow of %v: ports %d to %d are no range", a.Prefix, a.First, a.Last)
	}
	return s, nil
}

func (s span) isICMP() bool { return s.protocol != unix.IPPROTO_TCP && s.protocol != unix.IPPROTO_UDP }

// narrow returns the part of s that concerns one address, and whether there is one.
func (s span) narrow(a netip.Addr) (span, bool) {
	if !a.IsValid() || !s.prefix.Contains(a) {
		return span{}, false
	}
	s.prefix = netip.PrefixFrom(a, a.BitLen())
	return s, true
}

// element returns s as an element of a set of protocol, address and port, or
// of protocol and address where it has no ports.
func (s span) element() element {
	text := fmt.Sprintf("%s . %s", protocolName(s.protocol), prefixText(s.prefix))
	low := append([]byte{s.protocol, 0, 0, 0}, s.prefix.Addr().AsSlice()...)
	high := append([]byte{s.protocol, 0, 0, 0}, lastAddr(s.prefix)...)
	if !s.isICMP() {
		text += " . " + portsText(s.first, s.last)
		low, high = appendPort(low, s.first), appendPort(high, s.last)
	}
	return element{text: text, key: low, end: high}
}

func appendPort(b []byte, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func portsText(first, last uint16) string {
	if first == last {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

func lastAddr(p netip.Prefix) []byte {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

// layers arranges spans so that none overlaps another of the same layer, which
// is what a set of intervals demands, and leaves out what others cover. Since
// prefixes are either nested or disjoint, the layer of a span is the number of
// spans around it that it overlaps, and there are few.
func layers(spans []span) [][]span {
	type place struct {
		protocol byte
		prefix   netip.Prefix
	}
	type ports struct {
		first, last uint16
		layer       int
	}
	byPlace := map[place][]ports{}
	var places []place
	for _, s := range spans {
		p := place{s.protocol, s.prefix}
		if byPlace[p] == nil {
			places = append(places, p)
		}
		byPlace[p] = append(byPlace[p], ports{first: s.first, last: s.last})
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(a.prefix.Bits()-b.prefix.Bits(), cmp.Compare(a.protocol, b.protocol), a.prefix.Addr().Compare(b.prefix.Addr()))
	})
	var lengths []int // prefix lengths seen so far, ascending
	var out [][]span
	for _, p := range places {
		list := byPlace[p]
		slices.SortFunc(list, func(a, b ports) int { return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last)) })
		merged := list[:0]
		for _, r := range list {
			if n := len(merged); n > 0 && int(r.first) <= int(merged[n-1].last)+1 {
				merged[n-1].last = max(merged[n-1].last, r.last)
				continue
			}
			merged = append(merged, r)
		}
		kept := merged[:0]
	next:
		for _, r := range merged {
			for _, bits := range lengths {
				around, _ := p.prefix.Addr().Prefix(bits)
				if bits == p.prefix.Bits() {
					break
				}
				outer := byPlace[place{p.protocol, around}]
				i, _ := slices.BinarySearchFunc(outer, r.first, func(o ports, first uint16) int { return cmp.Compare(o.last, first) })
				for ; i < len(outer) && outer[i].first <= r.last; i++ {
					if outer[i].first <= r.first && r.last <= outer[i].last {
						continue next
					}
					r.layer = max(r.layer, outer[i].layer+1)
				}
			}
			kept = append(kept, r)
		}
		byPlace[p] = kept
		if n := len(lengths); n == 0 || lengths[n-1] != p.prefix.Bits() {
			lengths = append(lengths, p.prefix.Bits())
		}
		for _, r := range kept {
			for len(out) <= r.layer {
				out = append(out, nil)
			}
			out[r.layer] = append(out[r.layer], span{p.protocol, p.prefix, r.first, r.last})
		}
	}
	return out
}

// addSpans adds sets for spans to t, as many as they need, and returns their
// names. The sets hold protocol, address and port, or protocol and address.
func addSpans(t *table, k stack, name string, spans []span) []string {
	var names []string
	for i, layer := range layers(spans) {
		s := &set{name: name, types: []nftables.SetDatatype{nftables.TypeInetProto, k.address}, interval: true}
		if i > 0 {
			s.name = fmt.Sprintf("%s_%d", name, i+1)
		}
		if !layer[0].isICMP() {
			s.types = append(s.types, nftables.TypeInetService)
		}
		slices.SortFunc(layer, func(a, b span) int {
			return cmp.Or(cmp.Compare(a.protocol, b.protocol), a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.first, b.first))
		})
		for _, sp := range layer {
			s.elements = append(s.elements, sp.element())
		}
		t.sets = append(t.sets, s)
		names = append(names, s.name)
	}
	return names
}

// split separates spans of ICMP from others, of one address family.
func split(k stack, spans []span) (ports, pings []span) {
	for _, s := range spans {
		switch {
		case !k.of(s.prefix.Addr()):
		case s.isICMP():
			pings = append(pings, s)
		default:
			ports = append(ports, s)
		}
	}
	return ports, pings
}

// nowhere are the addresses that lie on no way: no prefix opens them, however
// wide it is. Link-local ones of IPv4 are among them unless an allow names
// them: metadata services live there.
var (
	nowhere   = prefixes("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")
	linkLocal = netip.MustParsePrefix("169.254.0.0/16")
)

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

// abroad returns what of p lies outside of any machine.
func abroad(p netip.Prefix) []netip.Prefix {
	out := []netip.Prefix{p}
	holes := nowhere
	if p.Bits() < linkLocal.Bits() {
		holes = append(slices.Clone(nowhere), linkLocal)
	}
	for _, hole := range holes {
		var rest []netip.Prefix
		for _, q := range out {
			rest = append(rest, without(q, hole)...)
		}
		out = rest
	}
	return out
}

// without returns p less hole, as prefixes.
func without(p, hole netip.Prefix) []netip.Prefix {
	if !p.Overlaps(hole) {
		return []netip.Prefix{p}
	}
	if hole.Bits() <= p.Bits() {
		return nil
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(b)
	high := netip.PrefixFrom(a, p.Bits()+1)
	return append(without(low, hole), without(high, hole)...)
}

// internalSpans are Policy.Internal as elements of protocol and port.
func internalElements(p sandbox.Policy) ([]element, error) {
	type ports struct {
		protocol    byte
		first, last uint16
	}
	var list []ports
	for _, in := range p.Internal {
		r := ports{unix.IPPROTO_TCP, in.First, in.Last}
		switch {
		case in.Protocol == "udp":
			r.protocol = unix.IPPROTO_UDP
		case in.Protocol != "tcp":
			return nil, fmt.Errorf("compiling internal ports: unknown protocol %q", in.Protocol)
		}
		if r.first == 0 || r.first > r.last {
			return nil, fmt.Errorf("compiling internal ports: %d to %d are no range", r.first, r.last)
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b ports) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first))
	})
	var merged []ports
	for _, r := range list {
		if n := len(merged); n > 0 && merged[n-1].protocol == r.protocol && int(r.first) <= int(merged[n-1].last)+1 {
			merged[n-1].last = max(merged[n-1].last, r.last)
			continue
		}
		merged = append(merged, r)
	}
	var elements []element
	for _, r := range merged {
		elements = append(elements, element{
			text: protocolName(r.protocol) + " . " + portsText(r.first, r.last),
			key:  appendPort([]byte{r.protocol, 0, 0, 0}, r.first),
			end:  appendPort([]byte{r.protocol, 0, 0, 0}, r.last),
		})
	}
	return elements, nil
}

// internalSet holds protocol and port of what is open within the environment.
func internalSet(p sandbox.Policy) (*set, error) {
	elements, err := internalElements(p)
	if err != nil {
		return nil, err
	}
	return &set{name: "internal", types: []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService},
		interval: true, elements: elements}, nil
}
