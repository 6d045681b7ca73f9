package main

import "syscall"

// mountSmall puts a file system in memory at dir, or (again) gives the one there another size.
func mountSmall(dir, size string, again bool) error {
	flags := uintptr(0)
	if again {
		flags = syscall.MS_REMOUNT
	}
	return syscall.Mount("judge", dir, "tmpfs", flags, size)
}

func unmountSmall(dir string) { syscall.Unmount(dir, 0) }
