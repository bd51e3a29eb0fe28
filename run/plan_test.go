package run

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"bj/fleet"
	"bj/lang/diag"
	"bj/sandbox"
)

func endpoint(t *testing.T, url string) *fleet.Endpoint {
	t.Helper()
	e, err := fleet.ParseEndpoint(url)
	if err != nil {
		t.Fatal(err)
	}
	return &e
}

func planOf(f *fleet.Fleet, r *fleet.Recipe, o PlanOptions) *Plan {
	return NewPlans(f, []*fleet.Recipe{r}, o)[0]
}

func TestPlanPolicy(t *testing.T) {
	f := &fleet.Fleet{Services: []*fleet.Service{
		service("names", "default", "udp://10.0.0.1:53"),
		service("pkgs", "read", "http://10.0.0.2", "write", "tcp://10.0.1.0/24:8000-8010"),
		{Name: "svc", Listens: []fleet.Ports{{Protocol: "tcp", First: 80, Last: 80}}, Pathways: []fleet.Pathway{{Name: "default"}}},
	}}
	r := recipe()
	r.Conditions = []fleet.Condition{
		allow("names", "default"), allow("pkgs", "read", "write"), allow("svc", "default"),
		{Endpoint: endpoint(t, "icmp://[2001:db8::1]"), On: []string{"m"}},
		{Endpoint: endpoint(t, "tcp://127.0.0.1:9")},
		{Endpoint: endpoint(t, "tcp://198.18.0.10:9")},
	}
	p := planOf(f, r, PlanOptions{})
	if p.Refusal != nil {
		t.Fatal(p.Refusal)
	}
	prefix := netip.MustParsePrefix
	want := sandbox.Policy{Internal: f.Services[2].Listens, Allows: []sandbox.Allow{
		{Condition: 0, Protocol: "udp", Prefix: prefix("10.0.0.1/32"), First: 53, Last: 53},
		{Condition: 1, Protocol: "tcp", Prefix: prefix("10.0.0.2/32"), First: 80, Last: 80},
		{Condition: 1, Protocol: "tcp", Prefix: prefix("10.0.1.0/24"), First: 8000, Last: 8010},
		{Condition: 3, Machines: []string{"m"}, Protocol: "icmp", Prefix: prefix("2001:db8::1/128")},
		{Condition: 4, Protocol: "tcp", Prefix: prefix("127.0.0.1/32"), First: 9, Last: 9},
		{Condition: 5, Protocol: "tcp", Prefix: prefix("198.18.0.10/32"), First: 9, Last: 9},
	}}
	if !reflect.DeepEqual(p.Policy, want) {
		t.Errorf("policy is\n%+v\nwant\n%+v", p.Policy, want)
	}
	var contacts []string
	for _, c := range p.Contacts {
		text := c.Endpoint.URL
		if c.Probe.IsValid() {
			text += " tried"
		}
		contacts = append(contacts, text)
	}
	if got := strings.Join(contacts, ", "); got != "udp://10.0.0.1:53, http://10.0.0.2 tried, tcp://10.0.1.0/24:8000-8010, icmp://[2001:db8::1]" {
		t.Errorf("contacts: %s", got)
	}
}

func TestPlanRefuses(t *testing.T) {
	condition := func(url string) func(*fleet.Recipe) {
		return func(r *fleet.Recipe) {
			r.Conditions = []fleet.Condition{{Endpoint: endpoint(t, url), Text: "allow(" + url + ")", Pos: diag.Pos{File: "a.star", Line: 3}}}
		}
	}
	for name, c := range map[string]struct {
		change func(*fleet.Recipe)
		want   string
	}{
		"only of a library": {func(r *fleet.Recipe) { condition("lib:///usr/lib/libx.so")(r); r.Conditions[0].Only = []string{"x"} }, "for all units"},
		"too many units": {func(r *fleet.Recipe) {
			condition("tcp://10.0.0.1:1")(r)
			for i := range sandbox.MaxUnits + 1 {
				r.Conditions[0].Only = append(r.Conditions[0].Only, fmt.Sprint("u", i))
			}
		}, "63 units"},
		"no file":     {func(r *fleet.Recipe) { r.Files = []fleet.File{{Path: "/x", Source: "nowhere"}} }, "the file nowhere cannot be read"},
		"no secret":   {func(r *fleet.Recipe) { r.Secrets = []fleet.Secret{{Name: "S", Source: "nowhere"}} }, "secret S cannot be read"},
		"zero secret": {func(r *fleet.Recipe) { r.Secrets = []fleet.Secret{{Name: "S", Value: "a\x00"}} }, "zero byte"},
		"two machines captured": {func(r *fleet.Recipe) {
			r.Hardware = hardware("m", 2)
			s := step(r, "get", "x")
			s.Capture = "X"
			r.Strategy = []fleet.Action{{Step: s}}
		}, `step "get" captures the output of 2 machines`},
	} {
		t.Run(name, func(t *testing.T) {
			r := recipe()
			c.change(r)
			p := planOf(&fleet.Fleet{}, r, PlanOptions{Root: t.TempDir()})
			if p.Refusal == nil || !strings.Contains(p.Refusal.Error(), c.want) {
				t.Errorf("refusal is %v, want %q", p.Refusal, c.want)
			}
		})
	}
	r := recipe()
	r.Hardware[0].Image = &fleet.Image{Host: true}
	if p := planOf(&fleet.Fleet{Workspace: fleet.Workspace{Image: &fleet.Image{OCI: "x"}}}, r, PlanOptions{}); p.Refusal != nil {
		t.Errorf("the host's image is refused: %v", p.Refusal)
	}
}

func TestPlanMachines(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"conf": "x", "key": "sesame\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := recipe()
	r.Hardware = hardware("m", 2)
	r.Strategy = []fleet.Action{{Step: step(r, "go", "x")}}
	r.Strategy[0].Step.User = "nobody"
	r.Files = []fleet.File{{Path: "/etc/a", Content: "a", Mode: 0o600}, {Path: "/etc/b", Source: "conf", On: []string{"m-1"}}, {Path: "/c", Source: "."}}
	r.Secrets = []fleet.Secret{{Name: "KEY", Source: "key"}}
	r.Tools = []fleet.Tool{{Name: "a", Go: "x@v1"}, {Name: "b", Deb: "y"}}
	p := planOf(&fleet.Fleet{}, r, PlanOptions{Root: root, Tools: map[string]string{"b": "/tmp/b"}})
	if p.Refusal != nil {
		t.Fatal(p.Refusal)
	}
	files := func(i int) (paths []string) {
		for _, f := range p.Machines[i].Files {
			paths = append(paths, f.Path+" "+string(f.Content)+f.Source)
		}
		return paths
	}
	if got, want := files(0), []string{"/etc/a a", "/c " + root}; !reflect.DeepEqual(got, want) {
		t.Errorf("m-0 has %q", got)
	}
	if got, want := files(1), []string{"/etc/a a", "/etc/b " + filepath.Join(root, "conf"), "/c " + root}; !reflect.DeepEqual(got, want) {
		t.Errorf("m-1 has %q", got)
	}
	if !p.Machines[0].Files[1].Tree || p.Machines[1].Files[1].Tree {
		t.Error("folders are trees, files are not")
	}
	if p.Secrets["KEY"] != "sesame" || !reflect.DeepEqual(p.Users, []string{"nobody"}) {
		t.Errorf("%+v", p)
	}
	if p.Tools[1].Path != "/tmp/b" || p.Tools[1].Deb != "" || p.Tools[0].Go != "x@v1" {
		t.Errorf("tools: %+v", p.Tools)
	}
}
