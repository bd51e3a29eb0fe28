package ns

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"bj/sandbox"
	"bj/sandbox/sandboxtest"

	"bj/sandbox/hub"
)

func TestConformance(t *testing.T) {
	for _, tool := range []string{"nft", "ip", "tc", "nsenter", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("the tests need %s: apt-get install nftables iproute2 util-linux", tool)
		}
	}
	sandboxtest.Run(t, func(t testing.TB) sandbox.Provider {
		state := os.Getenv(sandboxtest.StateEnv)
		if state == "" {
			state = t.TempDir()
		}
		return New(Options{State: state})
	}, sandboxtest.Options{
		Left: func(t testing.TB, p sandbox.Provider, _ ...string) []string {
			left, err := filepath.Glob(filepath.Join(p.(*Provider).opts.State, "*"))
			if err != nil {
				t.Fatal(err)
			}
			return left
		},
		Kill: func(t testing.TB, env sandbox.Environment) {
			if err := env.(*environment).cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		},
		Outside: func(t testing.TB, env sandbox.Environment) *os.File {
			return sandboxtest.Witness(t, gatewayPID(env), hub.WitnessOut)
		},
		Holes: sandboxtest.Holes(gatewayPID),
	})
}

func gatewayPID(env sandbox.Environment) int { return env.(*environment).cmd.Process.Pid }
