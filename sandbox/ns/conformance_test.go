package ns

import (
	"os"
	"testing"

	"bj/sandbox"
	"bj/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	sandboxtest.Run(t, func(t testing.TB) sandbox.Provider {
		state := os.Getenv(sandboxtest.StateEnv)
		if state == "" {
			state = t.TempDir()
		}
		return New(Options{State: state})
	}, sandboxtest.Options{
		State: func(p sandbox.Provider) string { return p.(*Provider).opts.State },
		Kill: func(t testing.TB, env sandbox.Environment) {
			if err := env.(*environment).cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		},
	})
}
