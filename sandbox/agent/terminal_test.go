package agent

import (
	"strings"
	"testing"

	"bj/sandbox"
)

// TestTerminal holds that a shell in a machine's terminal has job control: keys
// reach what runs in the foreground, and nothing else.
func TestTerminal(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		tr := newTranscript()
		ctx := testContext(t)
		p, err := m.Start(ctx, sandbox.Command{Argv: []string{"/bin/sh", "-i"}, Env: map[string]string{"PS1": "PROMPT "}, Terminal: &sandbox.Terminal{Rows: 31, Columns: 99}}, tr.write)
		if err != nil {
			t.Fatal(err)
		}
		prompts := 1
		wait := func() {
			eventually(t, "the prompt", func() bool { return strings.Count(tr.String(sandbox.Stdout), "PROMPT") >= prompts })
			prompts++
		}
		say := func(text string) {
			if err := p.Write(ctx, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		wait()
		say("stty size\n")
		wait()
		if err := p.Resize(ctx, sandbox.Terminal{Rows: 42, Columns: 111}); err != nil {
			t.Fatal(err)
		}
		say("stty size\n")
		wait()
		say("sleep 1001\n")
		eventually(t, "sleeping", func() bool { return alive(t, m, "sleep") == "1" })
		say("\x03") // Ctrl-C
		wait()
		eventually(t, "the end of sleep", func() bool { return alive(t, m, "sleep") == "0" })
		say("sleep 1002\n")
		eventually(t, "sleeping", func() bool { return alive(t, m, "sleep") == "1" })
		say("\x1a") // Ctrl-Z
		wait()
		say("jobs; kill %1; fg; exit 7\n")
		e, err := p.Wait(ctx)
		if err != nil || e.Code != 7 {
			t.Errorf("%+v, %v", e, err)
		}
		out := tr.String(sandbox.Stdout)
		for _, want := range []string{"31 99", "42 111", "Stopped"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %q", want, out)
			}
		}
		if strings.Contains(out, "job control turned off") || strings.Contains(out, "can't access tty") {
			t.Errorf("no job control: %q", out)
		}
	})
}

// TestInput holds that input arrives whole and ends.
func TestInput(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		tr := newTranscript()
		ctx := testContext(t)
		p, err := m.Start(ctx, sandbox.Command{Argv: []string{"/usr/bin/wc", "-c"}, Input: true}, tr.write)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Write(ctx, make([]byte, 300_000)); err != nil {
			t.Fatal(err)
		}
		if err := p.CloseInput(ctx); err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(ctx); err != nil || e.Code != 0 || tr.String(sandbox.Stdout) != "300000\n" {
			t.Errorf("%+v, %v: %q", e, err, tr.String(sandbox.Stdout))
		}
		p, err = m.Start(ctx, sandbox.Command{Script: "true"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Write(ctx, []byte("x")); err == nil {
			t.Error("a command without input takes some")
		}
	})
}
