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

// TestConformance holds that virtual machines are what recipes rely on, and that
// root in them does not get out: those that are booted from nothing, and those of
// the pool. Libvirt runs on the stage.
func TestConformance(t *testing.T) {
	for _, tool := range []string{"nft", "ip", "tc", "nsenter", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("the tests need %s: apt-get install nftables iproute2 util-linux", tool)
		}
	}
	bare := func(t testing.TB) *Provider {
		p := provider(t)
		if state := os.Getenv(sandboxtest.StateEnv); state != "" {
			p.opts.State = state
		}
		return p
	}
	pooled := func(t testing.TB) sandbox.Provider {
		return pool.New(bare(t), pool.Options{Dir: filepath.Join(lab.folder(t), "pool"), Notice: func(s string) { t.Log(s) }})
	}
	inner := func(p sandbox.Provider) *Provider {
		if pooled, ok := p.(*pool.Pool); ok {
			p = pooled.Provider
		}
		return p.(*Provider)
	}
	gatewayPID := func(env sandbox.Environment) int { return env.(*environment).gateway.cmd.Process.Pid }
	attackers := image.Standard()
	attackers.Name, attackers.Debian = "attackers", append(attackers.Debian, "nftables")
	options := sandboxtest.Options{
		Virtual:  true,
		Patience: 2 * time.Minute,
		Image:    attackers,
		Keep:     []string{cacheDir(t), imagesDir},
		Prepare: func(t testing.TB) {
			startLibvirt(t)
			// What libvirt asks of QEMU once, and the notice about KVM.
			if err := pooled(t).Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		Left: func(t testing.TB, p sandbox.Provider, leases ...string) (all []string) {
			if leases == nil {
				leases = []string{hubPrefix}
			}
			for _, lease := range leases {
				all = append(all, left(t, inner(p), lease)...)
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
	// What the stage cannot make, without a network.
	p := provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := p.opts.Images.Stage(ctx, nil, attackers, func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Run(t, pooled, options)
}
