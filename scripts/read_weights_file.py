#!/usr/bin/env python3
"""Reads a .needle weights file without any of this project's code (docs/file-format.md).

Prints the section table and verifies every checksum. Needs nothing but Python 3.8.

  scripts/read_weights_file.py model.needle
  scripts/read_weights_file.py model.needle --values log_temp   # a tensor's deployed weights
"""

import argparse
import json
import mmap
import struct
import sys

MAGIC = b"\x89NDL\r\n\x1a\n"
TYPES = ["json", "bytes", "f32", "int8", "int4"]


class FormatError(Exception):
    pass


def crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli, reflected
        table.append(byte)
    return table


CRC = crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    table = CRC
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def check(condition, message):
    if not condition:
        raise FormatError(message)


def packed_size(kind, shape):
    if kind == "f32":
        count = 1
        for side in shape:
            count *= side
        return 4 * count
    blocks, groups = -(-shape[0] // 16), -(-shape[1] // 32)
    return blocks * groups * ((256 if kind == "int4" else 512) + 16) + blocks * 32


def read_table(data):
    check(len(data) >= 64, "too short for a header")
    magic, version, count, size, table_crc = struct.unpack_from("<8sIIQI", data)
    check(magic == MAGIC, "not a weights file")
    check(version == 1, "format version %d, this reader knows 1" % version)
    check(crc32c(data[:60]) == struct.unpack_from("<I", data, 60)[0], "the header is damaged")
    check(size == len(data), "%d bytes long, the header says %d" % (len(data), size))
    end = 64 + 128 * count
    check(end <= len(data), "the section table does not fit")
    check(crc32c(data[64:end]) == table_crc, "the section table is damaged")
    sections = {}
    for i in range(count):
        fields = struct.unpack_from("<80sIIQQQQII", data, 64 + 128 * i)
        name = fields[0].rstrip(b"\0").decode()
        kind, rank, shape, offset, length, crc = fields[1], fields[2], fields[3:5], *fields[5:8]
        check(kind < len(TYPES) and rank <= 2, "%s: unknown type or rank" % name)
        check(name not in sections, "%s occurs twice" % name)
        check(offset == -(-end // 64) * 64 and offset + length <= len(data), "%s: wrong place" % name)
        check(not any(data[end:offset]), "%s: the padding before it is not zero" % name)
        end = offset + length
        kind, shape = TYPES[kind], list(shape[:rank])
        check(kind in ("json", "bytes") or packed_size(kind, shape) == length, "%s: wrong size" % name)
        sections[name] = (kind, shape, offset, length, crc)
    check(end == len(data), "bytes follow the last section")
    return sections


def values(data, section):
    """The deployed weights, row by row."""
    kind, shape, offset, length, _ = section
    if kind == "f32":
        yield from struct.unpack_from("<%df" % (length // 4), data, offset)
        return
    rows, cols = shape
    blocks, groups = -(-rows // 16), -(-cols // 32)
    block_bytes = 256 if kind == "int4" else 512
    steps = offset + blocks * groups * block_bytes
    units = steps + blocks * groups * 16
    for row in range(rows):
        block, r = divmod(row, 16)
        unit_bits = struct.unpack_from("<H", data, units + 2 * row)[0]
        unit = struct.unpack("<f", struct.pack("<I", unit_bits << 16))[0]
        for col in range(cols):
            group, c = divmod(col, 32)
            start = offset + (block * groups + group) * block_bytes
            if kind == "int4":
                high, c = divmod(c, 16)
                byte = data[start + 64 * (c // 4) + 4 * r + c % 4]
                code = (byte >> 4 if high else byte & 15) - 8
            else:
                code = data[start + 64 * (c // 4) + 4 * r + c % 4] - 128
            yield unit * data[steps + (block * groups + group) * 16 + r] * code


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--values", metavar="TENSOR", help="print this tensor's deployed weights")
    options = parser.parse_args()
    with open(options.file, "rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    sections = read_table(data)
    for name, (kind, shape, offset, length, crc) in sections.items():
        check(crc32c(data[offset:offset + length]) == crc, "section %s is damaged" % name)
    if options.values:
        check(options.values in sections, "no section is called %s" % options.values)
        section = sections[options.values]
        check(section[0] not in ("json", "bytes"), "%s is not a tensor" % options.values)
        for value in values(data, section):
            print("%.9g" % value)
        return
    for name, (kind, shape, offset, length, crc) in sections.items():
        print("%-58s %-5s %-14s %10d %10d  %08x" % (name, kind, shape or "", offset, length, crc))
    kind, _, offset, length, _ = sections["config"]
    print(json.dumps(json.loads(data[offset:offset + length]), indent=1))
    print("%d sections, %d bytes, every checksum right" % (len(sections), len(data)))


if __name__ == "__main__":
    try:
        main()
    except (FormatError, OSError, ValueError) as error:
        sys.exit("%s: %s" % (sys.argv[1] if len(sys.argv) > 1 else "read_weights_file", error))
