package libvirt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"bj/sandbox"
	"bj/sandbox/hub"
	"bj/sandbox/image"
	"bj/sandbox/pool"
	"bj/sandbox/sandboxtest"
)

// TestConformance holds that the virtual machines of the pool are what recipes
// rely on, and that root in them does not get out. With -short, which leaves one
// test of each kind, it takes a minute or two where machines are emulated.
func TestConformance(t *testing.T) {
	options := conforming(t)
	options.Few = testing.Short()
	sandboxtest.Run(t, func(t testing.TB) sandbox.Provider {
		return pool.New(bare(t), pool.Options{Dir: filepath.Join(lab.folder(t), "pool"), Notice: func(s string) { t.Log(s) }})
	}, options)
}

// TestConformanceOfCold holds some of it of machines that are booted from nothing.
func TestConformanceOfCold(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: TestConformance has machines of the pool, and its templates are booted from nothing")
	}
	options := conforming(t)
	options.Few = true
	sandboxtest.Run(t, func(t testing.TB) sandbox.Provider { return bare(t) }, options)
}

// bare returns a provider that keeps its leases where the suite wants them.
func bare(t testing.TB) *Provider {
	p := provider(t)
	if state := os.Getenv(sandboxtest.StateEnv); state != "" {
		p.opts.State = state
	}
	return p
}

// conforming says how the suite reaches behind virtual machines. Libvirt runs on
// the stage.
func conforming(t *testing.T) sandboxtest.Options {
	t.Helper()
	for _, tool := range []string{"nft", "ip", "tc", "nsenter", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("the tests need %s: apt-get install nftables iproute2 util-linux", tool)
		}
	}
	attackers := image.Standard()
	attackers.Name, attackers.Debian = "attackers", append(attackers.Debian, "nftables")
	// What a stage cannot make, without a network.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := provider(t).opts.Images.Stage(ctx, nil, attackers, func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(imagesDir, 0o755); err != nil {
		t.Fatal(err)
	}
	gatewayPID := func(env sandbox.Environment) int { return env.(*environment).gateway.cmd.Process.Pid }
	return sandboxtest.Options{
		Virtual:  true,
		Patience: 2 * time.Minute,
		Image:    attackers,
		Keep:     []string{cacheDir(t), imagesDir},
		Prepare: func(t testing.TB) {
			startLibvirt(t)
			// What libvirt asks of QEMU once, and the notice about KVM.
			if err := bare(t).Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		Left: func(t testing.TB, p sandbox.Provider, leases ...string) (all []string) {
			if pooled, ok := p.(*pool.Pool); ok {
				p = pooled.Provider
			}
			if leases == nil {
				leases = []string{hubPrefix}
			}
			for _, lease := range leases {
				all = append(all, left(t, p.(*Provider), lease)...)
			}
			return all
		},
		Kill: func(t testing.TB, env sandbox.Environment) {
			if err := env.(*environment).gateway.cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		},
		Outside: func(t testing.TB, env sandbox.Environment) *os.File {
			return sandboxtest.Witness(t, gatewayPID(env), hub.WitnessOut)
		},
		Holes: sandboxtest.Holes(gatewayPID),
	}
}
