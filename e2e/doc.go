// Package e2e runs the daemon beside real deployments that fail: each test has servers, clients and
// a daemon in network namespaces of their own. A daemon sees the whole node and loads it, so these
// tests are apart from the others: make e2e.
package e2e
