package seal_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/fleet"
	"bj/sandbox"
	"bj/sandbox/seal"
	"bj/sandbox/seal/sealtest"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// policies are what the golden files show, by name.
func policies() map[string]sandbox.Policy {
	return map[string]sandbox.Policy{
		"dark": {},
		"internal": {Internal: []fleet.Ports{
			{Protocol: "tcp", First: 80, Last: 80}, {Protocol: "tcp", First: 2379, Last: 2380}, {Protocol: "udp", First: 53, Last: 53}}},
		"allows": {
			Internal: []fleet.Ports{{Protocol: "tcp", First: 80, Last: 90}},
			Allows: []sandbox.Allow{
				{Condition: 0, Protocol: "tcp", Prefix: prefix("192.0.2.1/32"), First: 443, Last: 443},
				{Condition: 0, Protocol: "tcp", Prefix: prefix("192.0.2.0/24"), First: 400, Last: 500},
				{Condition: 0, Protocol: "tcp", Prefix: prefix("192.0.2.128/25"), First: 450, Last: 600},
				{Condition: 1, Protocol: "udp", Prefix: prefix("2001:db8::/32"), First: 53, Last: 53, Machines: []string{"m1"}},
				{Condition: 2, Protocol: "icmp", Prefix: prefix("192.0.2.0/24")},
				{Condition: 2, Protocol: "icmp", Prefix: prefix("2001:db8::1/128")},
				{Condition: 3, Protocol: "tcp", Prefix: prefix("10.77.0.2/32"), First: 22, Last: 22, Machines: []string{"m0"}},
				{Condition: 3, Protocol: "icmp", Prefix: prefix("fd77::/64")},
				{Condition: 4, Protocol: "tcp", Prefix: prefix("127.0.0.1/32"), First: 9000, Last: 9001},
				{Condition: 4, Protocol: "udp", Prefix: prefix("::1/128"), First: 9000, Last: 9000},
				{Condition: 4, Protocol: "icmp", Prefix: prefix("127.0.0.0/8")},
			}},
		"units": {Units: []string{"a", "b", "c"}, Internal: []fleet.Ports{{Protocol: "tcp", First: 80, Last: 80}}, Allows: []sandbox.Allow{
			{Condition: 0, Protocol: "tcp", Prefix: prefix("192.0.2.1/32"), First: 443, Last: 443, Units: []string{"a"}},
			{Condition: 1, Protocol: "udp", Prefix: prefix("192.0.2.1/32"), First: 53, Last: 53},
			{Condition: 2, Protocol: "tcp", Prefix: prefix("10.77.0.2/32"), First: 22, Last: 22, Units: []string{"a", "b"}, Machines: []string{"m0"}},
			{Condition: 3, Protocol: "udp", Prefix: prefix("127.0.0.1/32"), First: 9000, Last: 9000, Units: []string{"b", "a"}},
			{Condition: 3, Protocol: "icmp", Prefix: prefix("::1/128"), Units: []string{"b", "a"}},
		}},
		"everything": {Allows: []sandbox.Allow{
			{Protocol: "tcp", Prefix: prefix("0.0.0.0/0"), First: 1, Last: 65535},
			{Protocol: "tcp", Prefix: prefix("::/0"), First: 1, Last: 65535}}},
	}
}

func hub(machines int) seal.Hub {
	h := seal.Hub{Generation: 1, Gateway4: sealtest.Gateway4, Gateway6: sealtest.Gateway6,
		RelayTCP: 1081, RelayUDP: 1082, Queue: 7, Group: 7}
	for i := range machines {
		h.Machines = append(h.Machines, seal.Machine{
			Name: fmt.Sprintf("m%d", i), Interface: fmt.Sprintf("m%d", i),
			V4: netip.MustParseAddr(fmt.Sprintf("10.77.0.%d", i+1)), V6: netip.MustParseAddr(fmt.Sprintf("fd77::%x", i+1))})
	}
	return h
}

func compile(t testing.TB, p sandbox.Policy, h seal.Hub) *seal.Ruleset {
	t.Helper()
	r, err := seal.CompileHub(p, h)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func compileMachine(t testing.TB, p sandbox.Policy, m seal.Machine) *seal.Ruleset {
	t.Helper()
	r, err := seal.CompileMachine(p, seal.Inside{Machine: m, Group: 8, Cgroups: []seal.Cgroup{{Path: "bj/m0/u-a", ID: 11}, {Path: "bj/m0/u-b", ID: 12}, {Path: "bj/m0/u-c", ID: 13}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The rules as text are what they were.
func TestGolden(t *testing.T) {
	for name, p := range policies() {
		h := hub(2)
		h.Machines[0].Tagged = true
		for file, r := range map[string]*seal.Ruleset{"hub-" + name: compile(t, p, h), "machine-" + name: compileMachine(t, p, h.Machines[0])} {
			path := filepath.Join("testdata", file+".nft")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(path, []byte(r.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != r.String() {
				t.Errorf("%s differs from what is compiled (UPDATE_GOLDEN=1 rewrites it):\n%s", path, r)
			}
		}
	}
}

// What the kernel holds after Apply is what nft makes of the rules' text.
func TestAppliedIsText(t *testing.T) {
	sealtest.Need(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	for name, p := range policies() {
		t.Run(name, func(t *testing.T) {
			n := sealtest.New(t, 2)
			n.Config.Machines[0].Tagged = true
			sameAsText(t, n.Hub, compile(t, p, n.Config), 2)
			if len(p.Units) == 0 {
				sameAsText(t, n.Machines[0], compileMachine(t, p, n.Config.Machines[0]), 0)
				return
			}
			r, err := seal.CompileMachine(p, seal.Inside{Machine: n.Config.Machines[0], Group: 8, Cgroups: folders(t)})
			if err != nil {
				t.Fatal(err)
			}
			sameAsText(t, n.Machines[0], r, 0)
		})
	}
}

// folders are some that nft finds where it looks for cgroups: below
// /sys/fs/cgroup, whatever is mounted there.
func folders(t *testing.T) []seal.Cgroup {
	t.Helper()
	list, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		t.Skipf("looking for cgroups: %v", err)
	}
	var found []seal.Cgroup
	for _, e := range list {
		var st unix.Stat_t
		if e.IsDir() && unix.Stat(filepath.Join("/sys/fs/cgroup", e.Name()), &st) == nil && len(found) < 3 {
			found = append(found, seal.Cgroup{Path: e.Name(), ID: st.Ino})
		}
	}
	if len(found) < 3 {
		t.Skip("there are no three folders of cgroups")
	}
	return found
}

func apply(t testing.TB, n *sealtest.NS, r *seal.Ruleset) *seal.Table {
	t.Helper()
	table, err := seal.Apply(n.FD(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

// So it is after rules were replaced, also where they had to go in steps.
func TestReplacedIsText(t *testing.T) {
	sealtest.Need(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	for _, how := range []struct {
		name    string
		apply   func(int, *seal.Ruleset) (*seal.Table, error)
		replace func(*seal.Table, *seal.Ruleset) error
	}{{"at once", seal.Apply, (*seal.Table).Replace}, {"in steps", seal.ApplyInSteps, (*seal.Table).ReplaceInSteps}} {
		t.Run(how.name, func(t *testing.T) {
			n := sealtest.New(t, 2)
			table, err := how.apply(n.Hub.FD(), compile(t, policies()["everything"], n.Config))
			if err != nil {
				t.Fatal(err)
			}
			defer table.Close()
			for _, name := range []string{"dark", "allows", "allows"} {
				n.Config.Generation++
				r := compile(t, policies()[name], n.Config)
				if err := how.replace(table, r); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				isText(t, n.Hub, r, 2)
			}
		})
	}
}

func sameAsText(t *testing.T, n *sealtest.NS, r *seal.Ruleset, machines int) {
	t.Helper()
	apply(t, n, r)
	isText(t, n, r, machines)
}

// isText compares what the kernel lists in n with what it lists where nft has
// read the text of r. The order of chains is of no meaning.
func isText(t *testing.T, n *sealtest.NS, r *seal.Ruleset, machines int) {
	t.Helper()
	got, err := n.Run("nft", "list", "ruleset")
	if err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	other := sealtest.NewNS(t)
	for i := range machines {
		if out, err := other.Run("ip", "link", "add", fmt.Sprintf("m%d", i), "type", "ifb"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(normal(r.String())), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := other.Run("nft", "-f", file); err != nil {
		t.Fatalf("nft does not read the text: %v: %s\n%s", err, out, r)
	}
	want, err := other.Run("nft", "list", "ruleset")
	if err != nil {
		t.Fatalf("%v: %s", err, want)
	}
	if g, w := blocks(normal(got)), blocks(normal(want)); !slices.Equal(g, w) {
		t.Errorf("applied rules are not what nft makes of their text:\n%s", diff(g, w))
	}
}

// normal takes away what cannot be the same: who owns a table, counts, and
// how packets are held where the kernel lacks nft's own statement.
func normal(s string) string {
	s = regexp.MustCompile(`(?m)^\tflags (owner|persist).*\n`).ReplaceAllString(s, "")
	s = regexp.MustCompile(`[ \t]*(# progname.*)?\n+`).ReplaceAllString(s, "\n")
	s = regexp.MustCompile(`(?m)^# Warning.*\n`).ReplaceAllString(s, "")
	s = regexp.MustCompile(` (queue (flags \S+ )?(to|num) \d+|xt target "NFQUEUE")`).ReplaceAllString(s, "")
	s = regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(s, "packets 0 bytes 0")
	return s
}

// blocks returns the lines of a listing, with the blocks of each table (sets,
// chains, counters) sorted: those that were there before keep their place.
func blocks(s string) []string {
	var out, table []string
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "\t\t") || line == "\t}":
			table[len(table)-1] += "\n" + line
		case strings.HasPrefix(line, "\t"):
			table = append(table, line)
		default:
			slices.Sort(table)
			out = append(append(out, table...), line)
			table = nil
		}
	}
	// Counters that nothing names any more stay.
	return slices.DeleteFunc(out, func(b string) bool {
		return strings.HasPrefix(b, "\tcounter used_") || strings.HasPrefix(b, "\tcounter bytes_")
	})
}

func diff(got, want []string) string {
	var b strings.Builder
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			fmt.Fprintf(&b, "line %d\n  got  %s\n  want %s\n", i+1, g, w)
		}
	}
	return b.String()
}

const soon = 5 * time.Second
