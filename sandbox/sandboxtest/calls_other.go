//go:build !amd64

package sandboxtest

import "golang.org/x/sys/unix"

func foreignCalls() []call { return nil }

func rawPorts() (int, error) { return 0, unix.ENOSYS }
