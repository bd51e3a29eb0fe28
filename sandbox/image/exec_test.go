package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mountsDir makes the test binary run a command that mounts there, and wait.
const mountsDir = "BJ_IMAGE_TEST_MOUNTS"

func mountAndWait(dir string) {
	script := fmt.Sprintf("mount -t tmpfs bj-test %[1]s/m && touch %[1]s/m/inside && { setsid sh -c 'while :; do echo x > %[1]s/alive; sleep 0.05; done' & } && touch %[1]s/ready && sleep 1000", dir)
	_, err := command{Dir: dir, Env: os.Environ(), Argv: []string{"/bin/sh", "-c", script}, Mounts: true}.run(context.Background())
	fmt.Println("end:", err)
}

// What a bj that is killed was making an image with must neither leave a mount
// on the machine nor go on, even what has left its process group.
func TestKilledWhileMounting(t *testing.T) {
	if !mayMount() {
		t.Skip("only root mounts outside of a namespace of its own")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "m"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mountsDir+"="+dir)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	eventually(t, "it has mounted", func() bool {
		_, err := os.Stat(filepath.Join(dir, "ready"))
		return err == nil
	})
	mounted := func() bool {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(b, []byte(dir))
	}
	if _, err := os.Stat(filepath.Join(dir, "m/inside")); mounted() || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what it mounts is seen by the machine")
		defer syscall.Unmount(filepath.Join(dir, "m"), syscall.MNT_DETACH)
	}
	alive := func() bool {
		os.Remove(filepath.Join(dir, "alive"))
		b, _ := exec.Command("pgrep", "-f", filepath.Join(dir, "alive")).Output()
		return len(b) > 0
	}
	if !alive() {
		t.Fatal("what it started in the background is not seen")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	eventually(t, "all that it started ends", func() bool { return !alive() })
	if mounted() {
		t.Error("it left a mount")
	}
}
