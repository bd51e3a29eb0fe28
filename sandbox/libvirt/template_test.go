package libvirt

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"bj/sandbox"
)

// facts is what must not be the same on two machines of one template.
const facts = `
cat /proc/sys/kernel/random/uuid
head -c 16 /dev/urandom | od -An -tx1
cat /etc/machine-id
hostname
cat /sys/class/net/eth0/address
ip -4 -o address show dev eth0 | awk '{print $4}'
`

// TestTemplate holds that machines that start from one template share nothing of
// what makes a machine one of its own, that their clocks are right, that two
// leases of it do not either, and that they are sealed as others are.
func TestTemplate(t *testing.T) {
	startLibvirt(t)
	p := provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := spec(2)
	warm := func(from map[string]string) (sandbox.Environment, time.Duration) {
		t.Helper()
		start := time.Now()
		env, err := p.LeaseFrom(ctx, s, from)
		if err != nil {
			t.Fatalf("leasing from %v: %v", from, err)
		}
		took := time.Since(start)
		t.Cleanup(func() {
			if err := env.Release(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if err := env.Seal(ctx, sandbox.Policy{}); err != nil {
			t.Fatal(err)
		}
		return env, took
	}
	if _, err := p.Template(ctx, s.Machines[0]); err != nil { // which makes the image
		t.Fatal(err)
	}
	// The first lease also tells whether machines are emulated.
	cold, booted := warm(nil)
	if err := cold.Release(ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, p, cold.Name())
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
	dir := t.TempDir()
	start := time.Now()
	if err := p.Fill(ctx, tpl, dir); err != nil {
		t.Fatal(err)
	}
	filled := time.Since(start)
	seen := map[string]string{}
	for lease := range 2 {
		env, restored := warm(map[string]string{"m-0": dir, "m-1": dir})
		t.Logf("two machines: booted in %s, template made in %s, restored in %s (%.2f)", booted.Round(time.Millisecond), filled.Round(time.Millisecond), restored.Round(time.Millisecond), float64(restored)/float64(booted))
		for _, m := range env.Machines() {
			before := time.Now()
			clock, _ := sh(t, m, "date +%s.%N")
			var secs float64
			if _, err := fmt.Sscan(clock, &secs); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(0, int64(secs*1e9))
			if at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
				t.Errorf("%s: its clock says %s, between %s and %s", m.Name(), at, before, time.Now())
			}
			out, code := sh(t, m, facts)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if code != 0 || len(lines) != 6 {
				t.Fatalf("%s: %s", m.Name(), out)
			}
			for i, what := range []string{"uuid", "random bytes", "machine-id", "host name", "MAC", "address"} {
				// Names and addresses are the recipe's own: the same in every lease.
				key := fmt.Sprintf("%s %s", what, lines[i])
				if i > 2 {
					key = fmt.Sprintf("lease %d: %s", lease, key)
				}
				if who, again := seen[key]; again {
					t.Errorf("%s has the %s of %s", m.Name(), key, who)
				}
				seen[key] = fmt.Sprintf("%s of lease %d", m.Name(), lease)
			}
			if out, _ := sh(t, m, "cat /etc/greeting; ls /etc/ssh/ssh_host_* 2>/dev/null"); out != "hello\n" {
				t.Errorf("%s: its files: %q", m.Name(), out)
			}
		}
		canaries, err := env.Canaries(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range canaries {
			if !c.Held {
				t.Errorf("canary %s on %s: %s", c.Probe, c.Machine, c.Detail)
			}
		}
		if err := env.Release(ctx); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, p, env.Name())
	}
	// What is no template is said to be none.
	if _, err := p.LeaseFrom(ctx, spec(1), map[string]string{"m-0": t.TempDir()}); err == nil || !strings.Contains(err.Error(), sandbox.ErrTemplate.Error()) {
		t.Errorf("leasing from an empty folder: %v", err)
	}
}
