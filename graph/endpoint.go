package graph

import (
	"cmp"
	"net/netip"
	"path"
	"slices"
	"strings"

	"bj/fleet"
)

// A Pathway names one pathway of a service.
type Pathway struct{ Service, Name string }

// Owners says which services own endpoint literals. It is immutable.
type Owners struct {
	addresses map[netip.Prefix][]owned
	names     map[string][]owned // hosts, patterns of names, paths
	libraries []owned            // patterns of paths
	bits      [2][]int           // lengths of prefixes in use, of IPv4 and IPv6, longest first
}

type owned struct {
	pathway  Pathway
	endpoint *fleet.Endpoint
}

// NewOwners indexes the endpoints of services.
func NewOwners(services []*fleet.Service) *Owners {
	o := &Owners{addresses: map[netip.Prefix][]owned{}, names: map[string][]owned{}}
	for _, s := range services {
		for i := range s.Pathways {
			p := &s.Pathways[i]
			for j := range p.Endpoints {
				e := &p.Endpoints[j]
				x := owned{Pathway{s.Name, p.Name}, e}
				switch {
				case e.Prefix.IsValid():
					family := familyOf(e.Prefix)
					if !slices.Contains(o.bits[family], e.Prefix.Bits()) {
						o.bits[family] = append(o.bits[family], e.Prefix.Bits())
					}
					o.addresses[e.Prefix] = append(o.addresses[e.Prefix], x)
				case e.Scheme == "lib" && strings.ContainsAny(e.Path, `*?[\`):
					o.libraries = append(o.libraries, x)
				default:
					o.names[whereabouts(e)] = append(o.names[whereabouts(e)], x)
				}
			}
		}
	}
	for _, b := range o.bits {
		slices.SortFunc(b, func(a, b int) int { return cmp.Compare(b, a) })
	}
	return o
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// whereabouts is where an endpoint without an address is looked for.
func whereabouts(e *fleet.Endpoint) string {
	switch e.Scheme {
	case "unix", "lib":
		return e.Scheme + ":" + e.Path
	case "dns":
		return "dns:" + e.Host
	}
	return e.Host
}

// Of returns the pathways that own e: those of the most specific endpoint that
// e lies within: the longest prefix or the exact name, then the longest path,
// then named methods, then the smallest range of ports. A tie gives each, by
// name; nil means that nobody declares it.
func (o *Owners) Of(e *fleet.Endpoint) []Pathway {
	var near []owned
	switch {
	case e.Prefix.IsValid():
		for _, bits := range o.bits[familyOf(e.Prefix)] {
			if bits > e.Prefix.Bits() {
				continue
			}
			if at, err := e.Prefix.Addr().Prefix(bits); err == nil {
				near = append(near, o.addresses[at]...)
			}
		}
	case e.Scheme == "dns":
		near = append(near, o.names["dns:"+e.Host]...)
		for name := e.Host; ; {
			_, parent, ok := strings.Cut(name, ".")
			if !ok {
				break
			}
			name = parent
			near = append(near, o.names["dns:*."+parent]...)
		}
		near = append(near, o.names["dns:*"]...)
	case e.Scheme == "lib":
		near = append(slices.Clone(o.names[whereabouts(e)]), o.libraries...)
	default:
		near = o.names[whereabouts(e)]
	}
	var best rank
	var found []Pathway
	for _, x := range near {
		got, ok := within(e, x.endpoint)
		if !ok {
			continue
		}
		order := got.compare(best)
		if len(found) > 0 && order < 0 {
			continue
		}
		if order > 0 {
			found = found[:0]
		}
		best = got
		found = append(found, x.pathway)
	}
	slices.SortFunc(found, func(a, b Pathway) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Name, b.Name))
	})
	return slices.Compact(found)
}

// rank says how specific an endpoint is: more is more.
type rank struct{ host, path, methods, ports int }

func (a rank) compare(b rank) int {
	return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.path, b.path), cmp.Compare(a.methods, b.methods), cmp.Compare(a.ports, b.ports))
}

// within reports whether all that e reaches lies within x, and how specific x
// is. What reaches a port at the IP layer needs whoever serves HTTP there.
func within(e, x *fleet.Endpoint) (rank, bool) {
	r := rank{host: 1000}
	switch e.Scheme {
	case "unix", "lib":
		if x.Scheme != e.Scheme {
			return r, false
		}
		if x.Path == e.Path {
			return r, true
		}
		r.host = len(x.Path) - 1000
		ok, err := path.Match(x.Path, e.Path)
		return r, e.Scheme == "lib" && ok && err == nil
	case "dns":
		if x.Scheme != "dns" {
			return r, false
		}
		if x.Host != e.Host {
			r.host = len(x.Host)
		}
		return r, true
	}
	if transport(x.Scheme) != transport(e.Scheme) || transport(x.Scheme) == "" {
		return r, false
	}
	if x.Prefix.IsValid() {
		r.host = x.Prefix.Bits()
		if !e.Prefix.IsValid() || x.Prefix.Bits() > e.Prefix.Bits() || !x.Prefix.Contains(e.Prefix.Addr()) {
			return r, false
		}
	} else if e.Prefix.IsValid() || x.Host != e.Host {
		return r, false
	}
	if x.Scheme == "icmp" {
		return r, true
	}
	if e.Ports.First < x.Ports.First || x.Ports.Last < e.Ports.Last {
		return r, false
	}
	r.ports = int(x.Ports.First) - int(x.Ports.Last)
	if isHTTP(e.Scheme) && isHTTP(x.Scheme) {
		if e.Scheme != x.Scheme || !segments(e.Path, x.Path) || !methods(e.Methods, x.Methods) {
			return r, false
		}
		r.path = len(x.Path)
		if len(x.Methods) > 0 {
			r.methods = 1
		}
	}
	return r, true
}

func isHTTP(scheme string) bool { return scheme == "http" || scheme == "https" }

// transport returns the protocol that a scheme needs at the IP layer.
func transport(scheme string) string {
	switch scheme {
	case "tcp", "http", "https":
		return "tcp"
	case "udp", "icmp":
		return scheme
	}
	return ""
}

// segments reports whether prefix is p or leads to it by whole segments.
func segments(p, prefix string) bool {
	rest, ok := strings.CutPrefix(p, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// methods reports whether all of some are among the others; none means all.
func methods(some, others []string) bool {
	if len(others) == 0 {
		return true
	}
	return len(some) > 0 && !slices.ContainsFunc(some, func(m string) bool { return !slices.Contains(others, m) })
}

// inside reports whether an endpoint stays on the machines of a recipe: on
// their loopback, or on one of their addresses. It needs nobody else.
func inside(e *fleet.Endpoint, r *fleet.Recipe) bool {
	if !e.Prefix.IsValid() {
		return false
	}
	a := e.Prefix.Addr()
	if a.IsLoopback() {
		return true
	}
	return e.Prefix.IsSingleIP() && slices.ContainsFunc(r.Hardware, func(h *fleet.Hardware) bool {
		return slices.ContainsFunc(h.Machines, func(m fleet.Machine) bool { return m.Address == a || m.V4 == a || m.V6 == a })
	})
}
