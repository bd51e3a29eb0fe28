package run

import (
	"net/netip"
	"slices"
	"testing"

	"bj/fleet"
	"bj/sandbox"
)

// A condition for some units reaches the policy as such, the units that it names
// are numbered before the others, and the line that would allow what another unit
// tried is that condition with one unit more.
func TestOnly(t *testing.T) {
	r := recipe()
	a, b := step(r, "fetch", "x"), step(r, "serve", "x")
	a.Unit, b.Unit = "a", "b"
	r.Strategy = []fleet.Action{{Step: a}, {Step: b}}
	r.Conditions = []fleet.Condition{
		{Endpoint: endpoint(t, "tcp://10.0.0.1:1"), Text: `allow("tcp://10.0.0.1:1")`, Only: []string{"b"}},
		{Endpoint: endpoint(t, "udp://10.0.0.1:1"), Text: `allow("udp://10.0.0.1:1")`},
		{Endpoint: endpoint(t, "https://web.example:8443"), Text: `allow("https://web.example:8443")`, Only: []string{"b"}},
	}
	p := planOf(&fleet.Fleet{}, r, PlanOptions{})
	if p.Refusal != nil {
		t.Fatal(p.Refusal)
	}
	if len(p.Policy.Units) < 3 || !slices.Equal(p.Policy.Units[:2], []string{"b", "a"}) || p.Policy.Units[2] != unitOf(r.Validation[0].Title) {
		t.Errorf("units are numbered %v", p.Policy.Units)
	}
	if x := p.Policy.Allows; len(x) != 2 || !slices.Equal(x[0].Units, []string{"b"}) || x[1].Units != nil {
		t.Errorf("allows: %+v", x)
	}
	named := sandbox.Flow{Machine: "m", Protocol: "tcp", Destination: netip.MustParseAddrPort("10.0.0.2:8443"), Name: "web.example", Unit: "a"}
	byName := blame(p.fleet, named)
	if p.widen(&byName, named); byName.Allow != `allow("https://web.example:8443", only = ["b", "a"])` {
		t.Errorf("by its name: %s", byName.Allow)
	}
	for _, c := range []struct{ protocol, unit, allow string }{
		{"tcp", "a", `allow("tcp://10.0.0.1:1", only = ["b", "a"])`},
		{"tcp", unitOf(r.Validation[0].Title), `allow("tcp://10.0.0.1:1")`},
		{"tcp", "", `allow("tcp://10.0.0.1:1")`},
		{"icmp", "a", `allow("icmp://10.0.0.1")`},
	} {
		to := netip.MustParseAddrPort("10.0.0.1:1")
		if c.protocol == "icmp" {
			to = netip.AddrPortFrom(to.Addr(), 0)
		}
		f := sandbox.Flow{Machine: "m", Protocol: c.protocol, Destination: to, Unit: c.unit}
		got := blame(p.fleet, f)
		p.widen(&got, f)
		if got.Allow != c.allow {
			t.Errorf("%s of %q: %s, want %s", c.protocol, c.unit, got.Allow, c.allow)
		}
	}
}
