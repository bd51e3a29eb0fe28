package agent

import (
	"testing"

	"bj/sandbox"
)

// BenchmarkExec is one command from start to exit; the baseline is the cost of
// fork and exec, which the shell's own loop has too.
func BenchmarkExec(b *testing.B) {
	for _, c := range []struct {
		name    string
		cgroups bool
		command sandbox.Command
	}{
		{"cgroups/program", true, sandbox.Command{Argv: []string{"/bin/true"}}},
		{"cgroups/script", true, sandbox.Command{Script: ":"}},
		{"marks/program", false, sandbox.Command{Argv: []string{"/bin/true"}}},
		{"marks/script", false, sandbox.Command{Script: ":"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := newMachine(b, c.cgroups)
			for b.Loop() {
				p, err := m.Start(b.Context(), c.command, nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := p.Wait(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOutput is 20 MB of a command's output.
func BenchmarkOutput(b *testing.B) {
	m := newMachine(b, false)
	b.SetBytes(20 << 20)
	for b.Loop() {
		n := 0
		p, err := m.Start(b.Context(), sandbox.Command{Script: "head -c 20971520 /dev/zero"}, func(_ sandbox.Stream, d []byte) { n += len(d) })
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(b.Context()); err != nil || n != 20<<20 {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkMachine is a guest from nothing to its first command's exit.
func BenchmarkMachine(b *testing.B) {
	for b.Loop() {
		m := newMachine(b, false)
		p, err := m.Start(b.Context(), sandbox.Command{Argv: []string{"/bin/true"}}, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := m.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
