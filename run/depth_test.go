package run

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"bj/fleet"
	"bj/sandbox"
)

func endpointOf(t *testing.T, url string) fleet.Endpoint {
	t.Helper()
	e, err := fleet.ParseEndpoint(url)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What an endpoint says is judged, and nothing where it says an address alone.
func TestJudged(t *testing.T) {
	for url, want := range map[string]*sandbox.HTTP{
		"http://10.0.0.1":                      nil,
		"https://10.0.0.1:8443":                nil,
		"http://10.0.0.1/a/":                   {Host: "10.0.0.1", Path: "/a"},
		"https://Pkgs.internal":                {TLS: true, Host: "pkgs.internal"},
		"https://pkgs.internal:8443/stable/x/": {TLS: true, Host: "pkgs.internal", Path: "/stable/x", Inspect: true},
		"https://[fd00::1]/a":                  {TLS: true, Host: "fd00::1", Path: "/a", Inspect: true},
	} {
		if got := judged(endpointOf(t, url)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is judged by %+v, want %+v", url, got, want)
		}
	}
	e := endpointOf(t, "https://10.0.0.1")
	e.Methods = []string{"GET"}
	if got := judged(e); got == nil || !got.Inspect || got.Host != "10.0.0.1" {
		t.Errorf("methods: %+v", got)
	}
}

func TestExcept(t *testing.T) {
	holes := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::1")}
	parts := except(netip.MustParsePrefix("0.0.0.0/0"), holes)
	covers := func(a string) bool {
		return slices.ContainsFunc(parts, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(a)) })
	}
	for a, want := range map[string]bool{"192.0.2.7": false, "192.0.2.6": true, "192.0.2.8": true, "10.0.0.1": false, "10.0.0.0": true, "255.255.255.255": true} {
		if covers(a) != want {
			t.Errorf("%s is covered: %v", a, !want)
		}
	}
	if len(parts) > 64 {
		t.Errorf("%d prefixes", len(parts))
	}
}

// Libraries that others own are taken away, unless they are allowed.
func TestAbsent(t *testing.T) {
	f := &fleet.Fleet{Services: []*fleet.Service{
		{Name: "app", Pathways: []fleet.Pathway{{Name: "default", Endpoints: []fleet.Endpoint{endpointOf(t, "lib:///usr/lib/libapp.so*")}}}},
		{Name: "bar", Pathways: []fleet.Pathway{{Name: "default", Endpoints: []fleet.Endpoint{endpointOf(t, "lib:///usr/lib/libbar.so*")}}}},
		{Name: "foo", Pathways: []fleet.Pathway{{Name: "default", Endpoints: []fleet.Endpoint{endpointOf(t, "lib:///usr/lib/libfoo.so*")}}}},
	}}
	literal := endpointOf(t, "lib:///usr/lib/libbar.so.1")
	for _, c := range []struct {
		allows []fleet.Condition
		want   []string
	}{
		{nil, []string{"/usr/lib/libbar.so*", "/usr/lib/libfoo.so*"}},
		{[]fleet.Condition{{Service: "foo", Pathways: []string{"default"}}}, []string{"/usr/lib/libbar.so*"}},
		{[]fleet.Condition{{Endpoint: &literal}}, []string{"/usr/lib/libfoo.so*"}},
		{[]fleet.Condition{{Service: "*"}}, nil},
	} {
		p := &Plan{fleet: f, Recipe: &fleet.Recipe{Service: "app", Conditions: c.allows}}
		if got := p.absent(); !slices.Equal(got, c.want) {
			t.Errorf("%v: absent are %q, want %q", c.allows, got, c.want)
		}
	}
}
