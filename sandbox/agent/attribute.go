package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"bj/sandbox"
)

// lateness is how far apart a drop and the call that caused it may be: packets
// are sent again, and the log is read a moment later.
const lateness = 3 * time.Second

// Attribute says who was behind the blocked flows of one machine, by what its
// programs tried to reach. A flow that several programs caused becomes one for
// each; one that nobody was seen to cause stays without Origin. Attempts on
// Unix sockets that are not there are added: no packet tells of them.
func Attribute(machine string, flows []sandbox.Flow, tried []Attempt) []sandbox.Flow {
	type key struct {
		protocol string
		to       netip.AddrPort
	}
	byTarget := map[key][]Attempt{}
	for _, a := range tried {
		k := key{a.Protocol, plain(a.To)}
		byTarget[k] = append(byTarget[k], a)
	}
	var out []sandbox.Flow
	for _, f := range flows {
		if f.Machine != machine || f.Origin != nil {
			out = append(out, f)
			continue
		}
		var by []Attempt
		protocol := f.Protocol
		switch protocol { // what a program does for it
		case "dns":
			protocol = "udp"
		case "http", "https":
			protocol = "tcp"
		}
		for _, a := range byTarget[key{protocol, plain(f.Destination)}] {
			if f.Unit != "" && a.Origin.Unit != f.Unit {
				continue // it is allowed to that one, perhaps
			}
			if !a.Last.Before(f.First.Add(-lateness)) && !a.First.After(f.Last.Add(lateness)) {
				by = append(by, a)
			}
		}
		if f.Protocol == "dns" {
			// All ask the same server: who asked for this name is known by the port.
			mine := slices.DeleteFunc(slices.Clone(by), func(a Attempt) bool { return !slices.Contains(a.Ports, f.Source.Port()) })
			if len(mine) > 0 {
				by = mine
			}
		}
		out = append(out, split(f, by)...)
	}
	for _, a := range tried {
		if a.Protocol == "unix" {
			o := a.Origin
			out = append(out, sandbox.Flow{Machine: machine, Protocol: a.Protocol, Path: a.Path, Origin: &o, Running: a.Running, Count: a.Count, First: a.First, Last: a.Last})
		}
	}
	slices.SortStableFunc(out, func(a, b sandbox.Flow) int { return a.First.Compare(b.First) })
	return out
}

// Idle marks flows to a machine of the environment where nobody listens for
// them: opening that would help nobody. Addresses are each machine's, and heard
// what its agent said, nil if it said nothing.
func Idle(flows []sandbox.Flow, names []string, addresses [][]netip.Addr, heard []*Tried) {
	for i := range flows {
		f := &flows[i]
		to := plain(f.Destination)
		if f.Protocol != "tcp" && f.Protocol != "udp" {
			continue
		}
		for j, name := range names {
			there := name == f.Machine
			if !to.Addr().IsLoopback() {
				there = slices.Contains(addresses[j], to.Addr())
			}
			if there && heard[j] != nil {
				f.Idle = !slices.ContainsFunc(heard[j].Listening, func(l Listener) bool { return l.Takes(f.Protocol, to) })
			}
		}
	}
}

// plain is an address without zone, IPv4 as such.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// split gives a flow to those who caused it, in proportion to how often each
// tried; none of it is lost, and each has some.
func split(f sandbox.Flow, by []Attempt) []sandbox.Flow {
	if len(by) == 0 {
		return []sandbox.Flow{f}
	}
	if len(by) == 1 {
		o := by[0].Origin
		f.Origin, f.Running = &o, by[0].Running
		return []sandbox.Flow{f}
	}
	slices.SortStableFunc(by, func(a, b Attempt) int { return cmp.Or(cmp.Compare(b.Count, a.Count), b.Last.Compare(a.Last)) })
	var all int64
	for _, a := range by {
		all += a.Count
	}
	left := f.Count
	out := make([]sandbox.Flow, len(by))
	for i, a := range by {
		o := a.Origin
		g := f
		g.Origin, g.Running = &o, a.Running
		g.Count = max(1, min(f.Count*a.Count/all, left))
		left -= g.Count
		if a.First.After(g.First) {
			g.First = a.First
		}
		if g.Last = a.Last; g.Last.Before(g.First) {
			g.Last = g.First
		}
		out[i] = g
	}
	out[0].Count += max(0, left)
	return out
}
