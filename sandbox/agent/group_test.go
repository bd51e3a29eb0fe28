package agent

import (
	"strings"
	"testing"

	"bj/sandbox"
)

// alive counts the processes called name.
func alive(t *testing.T, m *machine, name string) string {
	t.Helper()
	return strings.TrimSpace(m.script(t, "pgrep -c -x "+name+" || true"))
}

// Killing a unit finds what daemonized, and nothing of other units.
func TestKillUnit(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		daemons := "(setsid sh -c 'sleep 1001 >/dev/null 2>&1 & setsid sleep 1002 >/dev/null 2>&1 &' &)"
		m.run(t, sandbox.Command{Script: daemons, Unit: "a"})
		m.run(t, sandbox.Command{Script: daemons, Unit: "b"})
		front, err := m.Start(testContext(t), sandbox.Command{Script: "exec sleep 1003", Unit: "a"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "starting", func() bool { return alive(t, m, "sleep") == "5" })
		if n, err := m.KillUnit(testContext(t), "a"); n != 3 || err != nil {
			t.Errorf("killed %d of 3, %v", n, err)
		}
		eventually(t, "2 left", func() bool { return alive(t, m, "sleep") == "2" })
		if e, err := front.Wait(testContext(t)); err != nil || e.Signal != "SIGKILL" || e.Code != 137 {
			t.Errorf("%+v %v", e, err)
		}
		if n, err := m.KillUnit(testContext(t), "a"); n != 0 || err != nil {
			t.Errorf("killed %d of 0, %v", n, err)
		}
		if n, err := m.KillUnit(testContext(t), "no-such"); n != 0 || err != nil {
			t.Errorf("killed %d of 0, %v", n, err)
		}
		if n, err := m.KillUnit(testContext(t), "b"); n != 2 || err != nil {
			t.Errorf("killed %d of 2, %v", n, err)
		}
		noZombies(t, m)
	})
}

// Killing a command spares its unit's others, and works when the command
// itself has long ended and left children that write nowhere.
func TestKillCommand(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		var ps []sandbox.Process
		for range 2 {
			p, err := m.Start(testContext(t), sandbox.Command{Script: "setsid sleep 1001 >/dev/null 2>&1 &", Unit: "a"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Wait(testContext(t)); err != nil {
				t.Fatal(err)
			}
			ps = append(ps, p)
		}
		eventually(t, "starting", func() bool { return alive(t, m, "sleep") == "2" })
		for i, left := range []string{"1", "0"} {
			if err := ps[i].Kill(testContext(t)); err != nil {
				t.Fatal(err)
			}
			// What is dead may not have been reaped yet.
			eventually(t, left+" left", func() bool { return alive(t, m, "sleep") == left })
		}
		if err := ps[0].Kill(testContext(t)); err != nil {
			t.Errorf("killing again: %v", err)
		}
	})
}

// Processes that do nothing but fork, or whose leader has ended, are killed
// like others.
func TestKillStubborn(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		hopper := m.helper(t, "hop")
		threads := m.helper(t, "threads")
		tr := newTranscript()
		if _, err := m.Start(testContext(t), threads, tr.write); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of the leader", func() bool { return tr.String(sandbox.Stdout) == "alone\n" })
		for range 2 {
			if _, err := m.Start(testContext(t), hopper, nil); err != nil {
				t.Fatal(err)
			}
		}
		n, err := m.KillUnit(testContext(t), "helper")
		if err != nil || n == 0 {
			t.Errorf("killed %d, %v", n, err)
		}
		if left := m.script(t, "pgrep -c -f AGENT-HELPER || true"); left != "0\n" {
			t.Errorf("%s are left", left)
		}
	})
}

// Many ended commands with and without survivors: those without are forgotten,
// the others can be killed.
func TestSweep(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		for range 3 {
			m.run(t, sandbox.Command{Script: "setsid sleep 1001 >/dev/null 2>&1 &", Unit: "daemons"})
		}
		for range 60 {
			m.script(t, "true")
		}
		if n, err := m.KillUnit(testContext(t), "daemons"); n != 3 || err != nil {
			t.Errorf("killed %d of 3, %v", n, err)
		}
	})
}

// A shell whose child is killed would end by itself and say so: it is killed
// before it can look.
func TestKillShellFirst(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		var ps []sandbox.Process
		for range 40 {
			tr := newTranscript()
			p, err := m.Start(testContext(t), sandbox.Command{Script: "echo up; sh -ec 'sleep 1234; :'; :", Unit: "a"}, tr.write)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "starting", func() bool { return tr.String(sandbox.Stdout) == "up\n" })
			ps = append(ps, p)
		}
		eventually(t, "the children", func() bool { return alive(t, m, "sleep") == "40" })
		for i, p := range ps {
			if i < 20 {
				if err := p.Kill(testContext(t)); err != nil {
					t.Fatal(err)
				}
			} else if _, err := m.KillUnit(testContext(t), "a"); err != nil {
				t.Fatal(err)
			}
			if e, err := p.Wait(testContext(t)); err != nil || e.Signal != "SIGKILL" {
				t.Errorf("command %d: %+v %v", i, e, err)
			}
		}
	})
}

// Units of an init system are told from groups of commands by their folders.
func TestOtherGroups(t *testing.T) {
	for line, want := range map[string]string{
		"0::/system.slice/web.service":                               "web.service system.slice/web.service",
		"0::/system.slice/system-getty.slice/getty@tty1.service/sub": "getty@tty1.service system.slice/system-getty.slice/getty@tty1.service",
		"0::/init.scope":            "init.scope init.scope",
		"0::/system.slice":          "",
		"0::/":                      "",
		"0::/other/web.service":     "",
		"1:memory:/a.service\n0::/": "",
	} {
		got := ""
		if m := inOther.FindStringSubmatch(line); m != nil {
			got = m[2] + " " + m[1]
		}
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
