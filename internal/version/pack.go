package version

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// A packer compresses; it is reused, for it holds large tables.
type packer struct{ enc *zstd.Encoder }

func newPacker() packer {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false))
	if err != nil {
		panic("version: zstd encoder: " + err.Error()) // only for options that contradict each other
	}
	return packer{enc}
}

func (p packer) pack(b []byte) []byte { return p.enc.EncodeAll(b, make([]byte, 0, len(b)/4+64)) }

// An unpacker decompresses. It may be used from many goroutines.
type unpacker struct{ dec *zstd.Decoder }

func newUnpacker() unpacker {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(1<<20), zstd.WithDecoderMaxMemory(MaxManifestBytes+1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("version: zstd decoder: " + err.Error())
	}
	return unpacker{dec}
}

// unpack decompresses into dst's memory and refuses what would not fit its
// capacity.
func (u unpacker) unpack(packed, dst []byte) ([]byte, error) {
	if len(packed) > MaxPackedBytes {
		return nil, corrupt("%d packed bytes, at most %d are allowed", len(packed), MaxPackedBytes)
	}
	b, err := u.dec.DecodeAll(packed, dst[:0])
	if err != nil {
		return nil, fmt.Errorf("%w: unpack: %w", ErrCorrupt, err)
	}
	return b, nil
}

// UnpackManifest undoes Snapshot.PackedManifest. What comes out is not yet
// verified: ParseManifest does.
func UnpackManifest(packed []byte) ([]byte, error) {
	u := newUnpacker()
	defer u.dec.Close()
	size := uint64(MaxManifestBytes)
	var h zstd.Header
	if h.Decode(packed) == nil && h.HasFCS {
		size = min(size, h.FrameContentSize)
	}
	b, err := u.unpack(packed, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("unpack manifest: %w", err)
	}
	return b, nil
}
