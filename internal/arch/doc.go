// Package arch holds the tests of the architecture: which package may import which, and
// other rules of the house that a compiler does not check.
package arch
