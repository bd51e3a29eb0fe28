package run

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/run/event"
)

// supplied returns a recipe of a service with one declared address, and adds
// the service, with an endpoint there, to l's fleet.
func (l *lab) supplied(service_, address string, conditions ...string) *fleet.Recipe {
	if l.fleet.Service(service_) == nil {
		s := service(service_, "default", "tcp://"+netip.AddrPortFrom(netip.MustParseAddr(address), 80).String())
		l.fleet.Services = append(l.fleet.Services, s)
		sortServices(l.fleet)
	}
	r := recipe()
	r.Service, r.Label, r.Name = service_, "//"+service_+":up", "up"
	m := &r.Hardware[0].Machines[0]
	m.Address, m.V4, m.Declared = netip.MustParseAddr(address), netip.MustParseAddr(address), true
	d := daemonStep(r, "serve "+service_, "touch ready\ntouch listening\nforever")
	r.Strategy = []fleet.Action{{Step: d}}
	for _, c := range conditions {
		r.Conditions = append(r.Conditions, allow(c, "default"))
		d.Run[0].Text = "connect " + addressOf(l.fleet, c) + "\n" + d.Run[0].Text
	}
	l.fleet.Recipes = append(l.fleet.Recipes, r)
	return r
}

func addressOf(f *fleet.Fleet, service string) string {
	s := f.Service(service)
	if s == nil || len(s.Pathways[0].Endpoints) == 0 {
		return "10.9.9.9:9"
	}
	e := s.Pathways[0].Endpoints[0]
	return netip.AddrPortFrom(e.Prefix.Addr(), e.Ports.First).String()
}

func sortServices(f *fleet.Fleet) {
	for i := range f.Services {
		for j := range i {
			if f.Services[i].Name < f.Services[j].Name {
				f.Services[i], f.Services[j] = f.Services[j], f.Services[i]
			}
		}
	}
}

func TestSupplyByRecipes(t *testing.T) {
	trial(t, func(l *lab) { // transitively, each once, in order
		l.plan.Supply = Recipes
		l.supplied("dns", "10.0.0.1")
		l.supplied("pkgs", "10.0.0.2", "dns")
		r := l.supplied("web", "10.0.0.3", "pkgs", "dns")
		l.want(r, "recovered")
		var order []string
		for _, e := range l.of(event.Lease) {
			order = append(order, e.Supplier)
			if e.Recipe != "//web:up" {
				t.Errorf("an event of %s", e.Recipe)
			}
		}
		if got := strings.Join(order, " "); got != "//dns:up //pkgs:up " {
			t.Errorf("environments of %q", got)
		}
		if n := len(l.of(event.Note)); n != 0 {
			t.Errorf("%d notes: production is not contacted", n)
		}
	})
	trial(t, func(l *lab) { // a recipe with fewer conditions than the fleet's
		l.plan.Supply = Recipes
		l.supplied("dns", "10.0.0.1")
		l.supplied("pkgs", "10.0.0.2", "dns")
		r := *l.supplied("web", "10.0.0.3", "pkgs", "dns")
		r.Conditions = r.Conditions[:1]
		l.want(&r, "not recovered daemon serve web m", `allow("dns") would allow it`)
	})
	trial(t, func(l *lab) { // those of one wave at the same time
		l.plan.Supply = Recipes
		for i, name := range []string{"dns", "pkgs"} {
			r := l.supplied(name, fmt.Sprintf("10.0.0.%d", i+1))
			r.Strategy = append(r.Strategy, fleet.Action{Step: step(r, "wait", "sleep 3m")})
		}
		start := time.Now()
		l.want(l.supplied("web", "10.0.0.3", "dns", "pkgs"), "recovered")
		if took := time.Since(start); took < 3*time.Minute || took > 5*time.Minute {
			t.Errorf("two suppliers of three minutes each took %s", took)
		}
	})
	trial(t, func(l *lab) { // the first of a wave that fails ends the others, and is named
		l.plan.Supply = Recipes
		r := l.supplied("dns", "10.0.0.1")
		r.Strategy = append(r.Strategy, fleet.Action{Step: step(r, "wait", "sleep 4m")})
		l.supplied("pkgs", "10.0.0.2").Strategy[0].Step.Run[0].Text = "echo broken\nexit 1"
		start := time.Now()
		l.want(l.supplied("web", "10.0.0.3", "dns", "pkgs"), "error supply", "the supplier //pkgs:up", "broken")
		if took := time.Since(start); took > time.Minute {
			t.Errorf("it took %s to give up", took)
		}
	})
	trial(t, func(l *lab) { // a supplier that fails is named
		l.plan.Supply = Recipes
		dns := l.supplied("dns", "10.0.0.1")
		dns.Strategy[0].Step.Run[0].Text = "echo broken\nexit 1"
		l.supplied("pkgs", "10.0.0.2", "dns")
		l.want(l.supplied("web", "10.0.0.3", "pkgs"), "error supply", "the supplier //dns:up", `the daemon "serve dns" ended`, "broken")
	})
	trial(t, func(l *lab) { // and so is one that dies later
		l.plan.Supply = Recipes
		dns := l.supplied("dns", "10.0.0.1")
		dns.Strategy[0].Step.Run[0].Text = "touch ready\ntouch listening\nsleep 2m"
		r := l.supplied("web", "10.0.0.3", "dns")
		r.Strategy = append(r.Strategy, fleet.Action{Step: step(r, "wait", "sleep 4m")})
		l.want(r, "error supply", "the supplier //dns:up", `the daemon "serve dns" ended`)
	})
	trial(t, func(l *lab) { // a supplier of a supplier dies while that one comes up
		l.plan.Supply = Recipes
		dns := l.supplied("dns", "10.0.0.1")
		dns.Strategy[0].Step.Run[0].Text = "touch ready\ntouch listening\nsleep 2m"
		pkgs := l.supplied("pkgs", "10.0.0.2", "dns")
		pkgs.Strategy = append(pkgs.Strategy, fleet.Action{Step: step(pkgs, "wait", "sleep 4m")})
		v := l.want(l.supplied("web", "10.0.0.3", "pkgs"), "error supply", "the supplier //dns:up")
		if strings.Contains(v.Reason, "//pkgs:up") {
			t.Errorf("the wrong one is blamed: %s", v.Reason)
		}
	})
	trial(t, func(l *lab) { // the alternative of the lowest wave, then of the least label
		l.plan.Supply = Recipes
		l.supplied("base", "10.0.0.9")
		slow := l.supplied("dns", "10.0.0.1", "base")
		slow.Label = "//dns:a"
		l.supplied("dns", "10.0.0.1").Label = "//dns:c"
		l.supplied("dns", "10.0.0.1").Label = "//dns:b"
		l.want(l.supplied("web", "10.0.0.3", "dns"), "recovered")
		if e := l.of(event.Lease)[0]; e.Supplier != "//dns:b" {
			t.Errorf("supplied by %s", e.Supplier)
		}
	})
	trial(t, func(l *lab) { // a condition that nobody needs to meet inside
		l.plan.Supply = Recipes
		r := recipe()
		e, _ := fleet.ParseEndpoint("tcp://127.0.0.1:80")
		r.Conditions = []fleet.Condition{{Endpoint: &e, Text: `allow("tcp://127.0.0.1:80")`}}
		l.want(r, "recovered")
	})
}

func TestSupplyRefused(t *testing.T) {
	for name, c := range map[string]struct {
		setup func(l *lab) *fleet.Recipe
		words []string
	}{
		"cycle": {func(l *lab) *fleet.Recipe {
			l.supplied("dns", "10.0.0.1", "pkgs")
			l.supplied("pkgs", "10.0.0.2", "dns")
			return l.supplied("web", "10.0.0.3", "pkgs")
		}, []string{"cycle", "//pkgs:up → //dns:up → //pkgs:up"}},
		"itself": {func(l *lab) *fleet.Recipe { return l.supplied("web", "10.0.0.3", "web") }, []string{"cycle", "//web:up → //web:up"}},
		"unproven": {func(l *lab) *fleet.Recipe {
			l.fleet.Services = append(l.fleet.Services, service("alone", "default", "tcp://10.0.0.7:1"))
			sortServices(l.fleet)
			l.supplied("dns", "10.0.0.1", "alone")
			return l.supplied("web", "10.0.0.3", "dns")
		}, []string{"alone is unproven", "//web:up → //dns:up"}},
		"undeclared endpoint": {func(l *lab) *fleet.Recipe {
			r := l.supplied("web", "10.0.0.3")
			e, _ := fleet.ParseEndpoint("tcp://10.7.7.7:1")
			r.Conditions = []fleet.Condition{{Endpoint: &e, Text: `allow("tcp://10.7.7.7:1")`}}
			return r
		}, []string{"no service declares the endpoint tcp://10.7.7.7:1"}},
		"on no machine": {func(l *lab) *fleet.Recipe {
			dns := l.supplied("dns", "10.0.0.1")
			dns.Hardware[0].Machines[0].V4 = netip.MustParseAddr("10.0.0.2")
			dns.Hardware[0].Machines[0].Address = netip.MustParseAddr("10.0.0.2")
			return l.supplied("web", "10.0.0.3", "dns")
		}, []string{"tcp://10.0.0.1:80 of dns is on no machine of //dns:up"}},
		"address used twice": {func(l *lab) *fleet.Recipe {
			l.supplied("dns", "10.0.0.1")
			l.supplied("pkgs", "10.0.0.1")
			return l.supplied("web", "10.0.0.3", "dns", "pkgs")
		}, []string{"10.0.0.1 is used twice", "//dns:up", "//pkgs:up"}},
		"the consumer's address": {func(l *lab) *fleet.Recipe {
			l.supplied("dns", "10.0.0.3")
			return l.supplied("web", "10.0.0.3", "dns")
		}, []string{"10.0.0.3 is used twice"}},
		"a supplier that cannot be run": {func(l *lab) *fleet.Recipe {
			dns := l.supplied("dns", "10.0.0.1")
			dns.Strategy = append(dns.Strategy, fleet.Action{Step: &fleet.Step{Title: "night", Capture: "A", Daemon: true, Run: []fleet.Script{{Text: "x"}}}})
			return l.supplied("web", "10.0.0.3", "dns")
		}, []string{"//dns:up supplies dns and cannot be run", "captures the output of a daemon"}},
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				l.plan.Supply = Recipes
				l.want(c.setup(l), "error supply", c.words...)
				if len(l.provider.leases) > 0 {
					t.Error("machines were leased all the same")
				}
			})
		})
	}
}
