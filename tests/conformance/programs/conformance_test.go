// SPDX-License-Identifier: Apache-2.0

// Package programs builds the Gateway API conformance suite as a program: `go test -c`.
package programs

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
