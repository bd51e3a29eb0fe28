package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	govirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// Parts says which libvirt and emulator make the machines, and whether their
// links can be made, or what is missing: after libvirt itself nothing is tried.
func (p *Provider) Parts(ctx context.Context) []sandbox.Part {
	daemon := sandbox.Part{Name: "libvirt", Text: "it makes virtual machines", Vital: true}
	qemu := sandbox.Part{Name: "qemu", Text: "it runs virtual machines", Vital: true}
	taps := sandbox.Part{Name: "taps", Text: "virtual machines hang on them", Vital: true}
	conn, err := p.rightful(ctx)
	if daemon.Err = err; err != nil {
		return []sandbox.Part{daemon}
	}
	defer conn.Disconnect()
	v, err := conn.ConnectGetLibVersion()
	if err != nil {
		daemon.Err = &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("asking the libvirt at %s its version: %w", p.opts.URI, err), Hint: "systemctl restart libvirtd"}
		return []sandbox.Part{daemon}
	}
	daemon.Text = fmt.Sprintf("libvirt %s at %s makes virtual machines", release(v), p.opts.URI)
	version, err := p.emulator(conn)
	if qemu.Err = err; err == nil {
		qemu.Text = fmt.Sprintf("QEMU %s runs virtual machines", version)
	}
	return []sandbox.Part{daemon, qemu, taps.With(tryTap(), "one was made")}
}

// rightful returns a connection to libvirt of a user who may have machines.
func (p *Provider) rightful(ctx context.Context) (*govirt.Libvirt, error) {
	if err := checkRights(); err != nil {
		return nil, err
	}
	return connect(ctx, p.opts.URI)
}

// emulator returns the version of libvirt's emulator, for which there must be an
// account.
func (p *Provider) emulator(conn *govirt.Libvirt) (string, error) {
	v, err := conn.ConnectGetVersion()
	if err != nil {
		return "", &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("the libvirt at %s has no emulator for %s: %w", p.opts.URI, machineArch, err),
			Hint: "apt-get install " + emulatorPackage + ", then systemctl restart libvirtd"}
	}
	_, _, err = emulatorUser()
	return release(v), err
}

// release writes a version as libvirt numbers it.
func release(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000) }

// tryTap makes a tap, where nobody else sees it.
func tryTap() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and its namespace with the tap
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("making a network namespace: %w", err)
			return
		}
		done <- addTap("bj-probe")
	}()
	err := <-done
	if err == nil {
		return nil
	}
	e := &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: "modprobe tun; where there is no such module, run a kernel that has it (CONFIG_TUN)"}
	if errors.Is(err, os.ErrPermission) {
		e.Hint = "root lacks rights over links here, as in most containers: run bj on the host, or in a container with --privileged"
	}
	return e
}
