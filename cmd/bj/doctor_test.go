package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"bj/sandbox"
	"bj/sandbox/libvirt"
)

// What is missing is broken where bj test cannot do without it in the sandbox
// that it takes, and that alone makes this machine one that cannot run it.
func TestDoctorCounts(t *testing.T) {
	lacking := sandbox.Part{Name: "taps", Text: "virtual machines hang on them", Vital: true,
		Err: &sandbox.Error{Code: sandbox.CodeLease, Err: errors.New("making the tap: no such device"), Hint: "modprobe tun"}}
	for chosen, state := range map[string]string{virtualSandbox: "broken  ", defaultSandbox: "missing "} {
		var b bytes.Buffer
		e := newEnv()
		e.stdout = &pipe{w: &b}
		d := &doctor{env: e, sandbox: chosen}
		d.print(t.Context(), d.of(virtualSandbox, lacking))
		want := state + ` taps       virtual machines hang on them: making the tap: no such device
                    mend it: modprobe tun
`
		if got := b.String(); got != want || d.failed != (chosen == virtualSandbox) {
			t.Errorf("--sandbox %s: failed %v, got:\n%s\nwant:\n%s", chosen, d.failed, got, want)
		}
	}
}

// Each way in which KVM does not work has its own words and its own cure.
func TestDoctorKVM(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []struct {
		k          libvirt.KVM
		text, mend string
	}{
		{libvirt.KVM{State: libvirt.KVMWorks}, "", ""},
		{libvirt.KVM{State: libvirt.KVMAbsent, Why: "there is no /dev/kvm"}, "there is no /dev/kvm", "modprobe kvm_intel"},
		{libvirt.KVM{State: libvirt.KVMRefused, Why: "Could not access KVM kernel module: Permission denied"}, "refused: Could not access KVM kernel module: Permission denied", "chgrp kvm /dev/kvm"},
		{libvirt.KVM{State: libvirt.KVMLate, Why: "it did not come up within 20s"}, "KVM hangs, or this host was busy", "run bj doctor again when this host has nothing else to do; bj test tries again after 10 minutes"},
		{libvirt.KVM{Why: "creating the domain: No space left on device"}, "no machine could be booted to see: creating the domain: No space left on device", "mend what is missing above"},
		{libvirt.KVM{}, "no machine could be booted to see", "mend what is missing above"},
	} {
		f := kvm(c.k)
		if f.vital || (f.err == nil) != (c.text == "") || f.err != nil && !strings.Contains(f.err.Error(), c.text) || !strings.HasPrefix(f.mend, c.mend) {
			t.Errorf("%+v: %v, mend it: %s", c.k, f.err, f.mend)
		}
		if f.err != nil && seen[f.err.Error()] {
			t.Errorf("%+v: %v is said of another one", c.k, f.err)
		} else if f.err != nil {
			seen[f.err.Error()] = true
		}
	}
}
