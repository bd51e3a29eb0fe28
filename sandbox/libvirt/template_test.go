package libvirt

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"bj/sandbox"
)

// facts prints what must not be the same on two machines of one template, in the
// order of factNames. What a program makes of the kernel's random bytes, such as a host
// key, differs if these do.
const facts = `
cat /proc/sys/kernel/random/uuid
head -c 16 /dev/urandom | od -An -tx1
head -c 16 /dev/random | od -An -tx1
mktemp -u XXXXXXXXXXXXXXXX
cat /proc/sys/kernel/random/boot_id
cat /etc/machine-id
cat /sys/class/net/eth0/address
hostname
ip -4 -o address show dev eth0 | awk '{print $4}'
`

var factNames = []string{"uuid", "random bytes", "bytes of /dev/random", "a program's choice", "boot id", "machine-id", "MAC", "host name", "address"}

// firstOfLease is the first of factNames that is the same in every lease.
const firstOfLease = 7

// TestTemplate holds that machines that start from one template share nothing of
// what makes a machine one of its own, that their clocks are right, that two
// leases of it do not either, and that they are sealed as others are.
func TestTemplate(t *testing.T) {
	from := warm(t, 2)
	p := provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := spec(2)
	tpl, err := p.Template(ctx, s.Machines[0])
	if err != nil {
		t.Fatal(err)
	}
	if other, err := p.Template(ctx, s.Machines[1]); err != nil || tpl.Key == "" || other.Key != tpl.Key {
		t.Fatalf("two machines that are alike have the templates %q and %q, %v", tpl.Key, other.Key, err)
	}
	bigger := s.Machines[0]
	bigger.Memory *= 2
	if other, err := p.Template(ctx, bigger); err != nil || other.Key == tpl.Key {
		t.Errorf("a machine with more memory has the same template, %v", err)
	}
	// The machines of both leases live at the same time.
	seen := map[string]string{}
	for lease, machines := range []int{2, 1} {
		start := time.Now()
		env, err := p.LeaseFrom(ctx, spec(machines), from)
		if err != nil {
			t.Fatal(err)
		}
		restored := time.Since(start)
		t.Cleanup(func() {
			if err := env.Release(context.Background()); err != nil {
				t.Error(err)
			}
			nothingLeft(t, p, env.Name())
		})
		if err := env.Seal(ctx, sandbox.Policy{}); err != nil {
			t.Fatal(err)
		}
		t.Logf("one machine booted in %s, template made in %s, %d restored in %s", lab.booted.Round(time.Millisecond), lab.filled.Round(time.Millisecond), machines, restored.Round(time.Millisecond))
		for _, m := range env.Machines() {
			if skew := clockSkew(t, m); skew > time.Second {
				t.Errorf("%s: its clock is wrong by %s", m.Name(), skew)
			}
			out, code := sh(t, m, facts)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if code != 0 || len(lines) != len(factNames) {
				t.Fatalf("%s: %s", m.Name(), out)
			}
			for i, what := range factNames {
				// Names and IP addresses are the recipe's own: the same in every lease.
				key := fmt.Sprintf("%s %s", what, lines[i])
				if i >= firstOfLease {
					key = fmt.Sprintf("lease %d: %s", lease, key)
				}
				if who, again := seen[key]; again {
					t.Errorf("%s has the %s of %s", m.Name(), key, who)
				}
				seen[key] = fmt.Sprintf("%s of lease %d", m.Name(), lease)
			}
			isWhole(t, m)
		}
		holds(t, env)
	}
	// What is no template is said to be none.
	if _, err := p.LeaseFrom(ctx, spec(1), map[string]string{"m-0": t.TempDir()}); err == nil || !strings.Contains(err.Error(), sandbox.ErrTemplate.Error()) {
		t.Errorf("leasing from an empty folder: %v", err)
	}
}

// clockSkew is by how much a machine's clock is wrong at least. The clock is read
// while the machine is asked, so the shortest of a few questions says the most.
func clockSkew(t testing.TB, m sandbox.Machine) time.Duration {
	t.Helper()
	best := time.Hour
	for range 3 {
		before := time.Now()
		clock, _ := sh(t, m, "date +%s.%N")
		after := time.Now()
		var secs float64
		if _, err := fmt.Sscan(clock, &secs); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(0, int64(secs*1e9))
		best = min(best, max(0, before.Sub(at), at.Sub(after)))
	}
	return best
}
