package gate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"bj/sandbox"
)

// index finds the allow that covers a destination, in time that does not grow
// with their number: prefixes are looked up by length.
type index struct {
	own     map[netip.Addr]bool
	lengths []int // prefix lengths in use
	allows  map[place][]sandbox.Allow
}

type place struct {
	protocol string
	prefix   netip.Prefix
}

func newIndex(p sandbox.Policy, own map[netip.Addr]bool) *index {
	x := &index{own: own, allows: map[place][]sandbox.Allow{}}
	for _, a := range p.Allows {
		at := place{a.Protocol, a.Prefix.Masked()}
		x.allows[at] = append(x.allows[at], a)
		if !slices.Contains(x.lengths, a.Prefix.Bits()) {
			x.lengths = append(x.lengths, a.Prefix.Bits())
		}
	}
	return x
}

// find returns the first condition that lets a unit of machine, "" for none,
// connect to an address outside of the environment, and whether there is one.
func (x *index) find(machine, unit, protocol string, to netip.AddrPort) (condition int, ok bool) {
	condition, judged, ok := x.match(machine, unit, protocol, to)
	if len(judged) > 0 {
		return judged[0].Condition, true
	}
	return condition, ok
}

// match is find, and returns beside it what says which requests may pass. That
// is nil where some condition opens the destination as it is.
func (x *index) match(machine, unit, protocol string, to netip.AddrPort) (condition int, judged []sandbox.Allow, ok bool) {
	a := to.Addr()
	if machine == "" || x.own[a] || !outside(a) {
		return 0, nil, false
	}
	for _, bits := range x.lengths {
		if bits > a.BitLen() {
			continue
		}
		prefix, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		// Link-local addresses must be named: metadata services live there.
		if a.IsLinkLocalUnicast() && bits < 16 {
			continue
		}
		for _, allow := range x.allows[place{protocol, prefix}] {
			if protocol != "icmp" && (to.Port() < allow.First || to.Port() > allow.Last) {
				continue
			}
			if !sandbox.Among(allow.Machines, machine) || !sandbox.Among(allow.Units, unit) {
				continue
			}
			if allow.HTTP != nil {
				judged = append(judged, allow)
				continue
			}
			if !ok || allow.Condition < condition {
				condition, ok = allow.Condition, true
			}
		}
	}
	if ok {
		return condition, nil, true
	}
	slices.SortStableFunc(judged, func(a, b sandbox.Allow) int { return cmp.Compare(a.Condition, b.Condition) })
	return 0, judged, len(judged) > 0
}

// outside reports whether an address can lie on the way out at all.
func outside(a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.Is4In6(), a.Zone() != "":
		return false
	case a.Is4():
		first := a.As4()[0]
		return first != 0 && first < 224
	}
	return !a.IsLinkLocalUnicast()
}

func sorted(sums map[int]sandbox.Use) []sandbox.Use {
	return slices.SortedFunc(maps.Values(sums), func(a, b sandbox.Use) int { return cmp.Compare(a.Condition, b.Condition) })
}
