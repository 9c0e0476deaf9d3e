// Package sys is redisguard's only door to unsafe and raw system calls.
//
// Everything here is a thin, allocation-conscious wrapper: it knows the kernel's
// structures, but nothing about Redis, namespaces or verdicts. Code outside this
// package may use golang.org/x/sys/unix freely as long as it needs no unsafe, and
// makes or closes no descriptor by its number: see fd.go.
package sys
