package ns

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// container makes a root as containers have one, an overlay, whose ids cannot be
// mapped, and runs a command there.
const container = `
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
for dir in proc sys dev; do mount --rbind /$dir $dir; done
for dir in run tmp; do mount -t tmpfs tmpfs $dir; done
mkdir old
cp "$2" tmp/test
pivot_root . old
umount -l /old
cd /
exec /tmp/test -test.run '^(TestMachineIsEmpty|TestCanariesHold)$' -test.v`

// In a container the root's ids cannot be mapped. Machines of root are then what
// those of ordinary users are: the host's files belong to nobody.
func TestInContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a container's root needs root")
	}
	out, err := exec.Command("unshare", "-m", "sh", "-eu", "-c", container, "sh", t.TempDir(), os.Args[0]).CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
}
