package lang

import "syscall"

// statFile asks for the size and times of a file.
func statFile(name string) (fileKey, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		return fileKey{}, err
	}
	return fileKey{size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), inode: st.Ino}, nil
}
