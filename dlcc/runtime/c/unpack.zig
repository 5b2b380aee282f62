//! Unpacks the content of a weights file of `--pack size`; docs/artifact.md describes the format.
//!
//! Every access is checked (ReleaseSafe), and what a check stops becomes a failure of `unpack`: the
//! panic handler leaves through a function of the C runtime. All memory is the caller's.
const std = @import("std");
const lzma = std.compress.lzma;
const Allocator = std.mem.Allocator;

const Failure = error{ Corrupt, OutOfMemory };

/// In the order of `dlcc/artifact/packed.py`.
const Kind = enum(u8) { directory, gaps, mask, codes, book0, book1, book2, book3, bytes, half0, half1, word0, word1, word2, word3 };
const kinds = @typeInfo(Kind).@"enum".field_names.len;
const uncoded = 0xff;
const taps = 3;
const most_points = 8;

/// Bytes that are read once, from front to back.
const Source = struct {
    rest: []const u8 = &.{},

    fn take(self: *Source, count: usize) Failure![]const u8 {
        if (count > self.rest.len) return error.Corrupt;
        defer self.rest = self.rest[count..];
        return self.rest[0..count];
    }

    fn byte(self: *Source) Failure!u8 {
        return (try self.take(1))[0];
    }

    /// A number in groups of seven bits, the lowest first; bit 7 says that another one follows.
    fn number(self: *Source) Failure!usize {
        var value: u64 = 0;
        for (0..6) |group| {
            const next = try self.byte();
            value |= @as(u64, next & 0x7f) << @intCast(7 * group);
            if (next < 0x80) return std.math.cast(usize, value) orelse error.Corrupt;
        }
        return error.Corrupt;
    }
};

/// Where std's LZMA decoder puts its bytes: the dictionary is all that was written before.
const Window = struct {
    out: []u8,
    len: usize = 0,

    pub fn lastOr(self: Window, default: u8) u8 {
        return if (self.len == 0) default else self.out[self.len - 1];
    }

    pub fn lastN(self: Window, distance: usize) Failure!u8 {
        if (distance == 0 or distance > self.len) return error.Corrupt;
        return self.out[self.len - distance];
    }

    pub fn appendLiteral(self: *Window, _: Allocator, byte: u8, _: *std.Io.Writer) Failure!void {
        if (self.len == self.out.len) return error.Corrupt;
        self.out[self.len] = byte;
        self.len += 1;
    }

    pub fn appendLz(self: *Window, _: Allocator, count: usize, distance: usize, _: *std.Io.Writer) Failure!void {
        if (distance == 0 or distance > self.len or count > self.out.len - self.len) return error.Corrupt;
        for (0..count) |_| {
            self.out[self.len] = self.out[self.len - distance];
            self.len += 1;
        }
    }
};

/// Raw LZMA with an end marker; `properties` as in the first byte of an .lzma file.
fn decode(memory: Allocator, stored: []const u8, out: []u8, properties: u8) !void {
    if (properties >= 9 * 5 * 5) return error.Corrupt;
    var reader = std.Io.Reader.fixed(stored);
    var coder = try lzma.RangeDecoder.init(&reader);
    var state = try lzma.Decode.init(memory, .{
        .lc = @intCast(properties % 9),
        .lp = @intCast(properties / 9 % 5),
        .pb = @intCast(properties / 45),
    });
    defer state.deinit(memory);
    var unused = std.Io.Writer.Allocating.init(memory);
    var window = Window{ .out = out };
    var count: u64 = 0;
    while (try state.process(&reader, &unused, &window, &coder, &count) == .more) {}
    if (window.len != out.len or reader.seek != stored.len) return error.Corrupt;
}

const Streams = struct {
    all: [kinds]Source = @splat(.{}),

    fn of(self: *Streams, kind: Kind) *Source {
        return &self.all[@intFromEnum(kind)];
    }

    /// The table of streams, then the streams.
    fn open(memory: Allocator, file: []const u8) Failure!Streams {
        var table = Source{ .rest = file };
        var made = Streams{};
        const count = try table.byte();
        if (count > kinds) return error.Corrupt;
        var rows: [kinds]struct { kind: u8, properties: u8, decoded: usize, stored: usize } = undefined;
        for (rows[0..count]) |*row| {
            row.* = .{ .kind = try table.byte(), .properties = try table.byte(), .decoded = try table.number(), .stored = try table.number() };
            if (row.kind >= kinds) return error.Corrupt;
        }
        for (rows[0..count]) |row| {
            const stored = try table.take(row.stored);
            if (row.properties == uncoded) {
                made.all[row.kind] = .{ .rest = stored };
                continue;
            }
            const out = try memory.alloc(u8, row.decoded);
            decode(memory, stored, out, row.properties) catch |failure| return if (failure == error.OutOfMemory) error.OutOfMemory else error.Corrupt;
            made.all[row.kind] = .{ .rest = out };
        }
        return made;
    }

    fn done(self: *const Streams) bool {
        for (self.all) |source| if (source.rest.len != 0) return false;
        return true;
    }
};

/// The bytes of `count` numbers, each plane a stream of its own.
const Planes = struct {
    planes: [4][]const u8,
    width: usize,

    fn take(streams: *Streams, first: Kind, width: usize, count: usize) Failure!Planes {
        var made = Planes{ .planes = @splat(&.{}), .width = width };
        for (0..width) |i| made.planes[i] = try streams.all[@intFromEnum(first) + i].take(count);
        return made;
    }

    fn at(self: *const Planes, index: usize) u32 {
        var value: u32 = 0;
        for (0..self.width) |i| value |= @as(u32, self.planes[i][index]) << @intCast(8 * i);
        return value;
    }
};

/// The numbers that an entry stores: looked up, or all of their bytes.
const Values = struct {
    planes: Planes,
    codes: []const u8 = &.{},
    book: ?[]const u32 = null,

    fn at(self: *const Values, index: usize) Failure!u32 {
        const book = self.book orelse return self.planes.at(index);
        if (self.codes[index] >= book.len) return error.Corrupt;
        return book[self.codes[index]];
    }
};

const Form = packed struct(u8) {
    width: enum(u2) { one, two, four, _ },
    positions: enum(u2) { all, mask, gaps, _ },
    book: bool,
    differences: bool,
    filters: bool,
    reserved: bool,

    fn bytes(self: Form) Failure!usize {
        return switch (self.width) {
            .one => 1,
            .two => 2,
            .four => 4,
            else => error.Corrupt,
        };
    }
};

/// Numbers of 1, 2 or 4 bytes in their places, the others zero.
const Elements = struct {
    out: []u8,
    width: usize,

    fn put(self: Elements, index: usize, value: u32) Failure!void {
        if (index >= self.out.len / self.width) return error.Corrupt;
        for (self.out[index * self.width ..][0..self.width], 0..) |*byte, i| byte.* = @truncate(value >> @intCast(8 * i));
    }

    fn get(self: Elements, index: usize) u32 {
        var value: u32 = 0;
        for (self.out[index * self.width ..][0..self.width], 0..) |byte, i| value |= @as(u32, byte) << @intCast(8 * i);
        return value;
    }

    fn fromMask(self: Elements, mask: []const u8, values: *const Values, stored: usize) Failure!void {
        var used: usize = 0;
        for (mask, 0..) |byte, i| {
            var rest = byte;
            while (rest != 0) : (rest &= rest - 1) {
                if (used == stored) return error.Corrupt;
                try self.put(8 * i + @ctz(rest), try values.at(used));
                used += 1;
            }
        }
        if (used != stored) return error.Corrupt;
    }

    /// A gap of `limit` says that so many zeros follow, and no number.
    fn fromGaps(self: Elements, gaps: *Source, limit: u8, values: *const Values, stored: usize) Failure!void {
        var at: usize = 0;
        for (0..stored) |used| {
            while (true) {
                const gap = try gaps.byte();
                if (gap > limit) return error.Corrupt;
                at += gap;
                if (gap < limit) break;
            }
            try self.put(at, try values.at(used));
            at += 1;
        }
    }

    fn sum(self: Elements) Failure!void {
        var total: u32 = 0;
        for (0..self.out.len / self.width) |i| {
            total +%= self.get(i);
            try self.put(i, total);
        }
    }
};

const Unpacker = struct {
    memory: Allocator,
    streams: Streams,

    /// Rising bit patterns, stored as differences.
    fn book(self: *Unpacker, width: usize, entries: usize) Failure![]u32 {
        const planes = try Planes.take(&self.streams, .book0, width, entries);
        const made = try self.memory.alloc(u32, entries);
        var total: u32 = 0;
        for (made, 0..) |*entry, i| {
            total +%= planes.at(i);
            entry.* = total;
        }
        return made;
    }

    fn elements(self: *Unpacker, form: Form, target: Elements) Failure!void {
        const directory, const count = .{ self.streams.of(.directory), target.out.len / target.width };
        var values = Values{ .planes = undefined };
        if (form.book) values.book = try self.book(target.width, try directory.number());
        defer if (values.book) |made| self.memory.free(made);
        const stored = if (form.positions == .all) count else try directory.number();
        if (stored > count) return error.Corrupt;
        if (form.book) {
            values.codes = try self.streams.of(.codes).take(stored);
        } else {
            const first: Kind = if (target.width == 1) .bytes else if (target.width == 2) .half0 else .word0;
            values.planes = try Planes.take(&self.streams, first, target.width, stored);
        }
        switch (form.positions) {
            .all => for (0..count) |i| try target.put(i, try values.at(i)),
            .mask => try target.fromMask(try self.streams.of(.mask).take((count + 7) / 8), &values, stored),
            .gaps => try target.fromGaps(self.streams.of(.gaps), try directory.byte(), &values, stored),
            else => return error.Corrupt,
        }
        if (form.differences) try target.sum();
    }

    /// 3x3 filters, transformed for Winograd's convolution into [points * points][block][channel][lane].
    fn filters(self: *Unpacker, form: Form, content: []u8) Failure![]u8 {
        const directory = self.streams.of(.directory);
        const points, const lanes = .{ try directory.number(), try directory.number() };
        const outputs, const channels = .{ try directory.number(), try directory.number() };
        if (form.width != .four or points == 0 or points > most_points or lanes == 0 or lanes > 1024) return error.Corrupt;
        if (outputs == 0 or outputs > 1 << 20 or channels == 0 or channels > 1 << 20) return error.Corrupt;
        const Row = [taps]f64;
        var matrix: [most_points]Row = undefined;
        for (matrix[0..points]) |*row| for (row) |*cell| {
            const numerator: f64 = @floatFromInt(@as(i8, @bitCast(try directory.byte())));
            cell.* = numerator / @as(f64, @floatFromInt(try directory.byte()));
        };
        const blocks = (outputs + lanes - 1) / lanes;
        const plane = blocks * channels * lanes;
        if (plane * points * points > content.len / 4) return error.Corrupt;
        const source = Elements{ .out = try self.memory.alloc(u8, outputs * channels * taps * taps * 4), .width = 4 };
        defer self.memory.free(source.out);
        @memset(source.out, 0);
        try self.elements(form, source);
        const target = Elements{ .out = content[0 .. plane * points * points * 4], .width = 4 };
        for (0..outputs) |output| for (0..channels) |channel| {
            const from = (output * channels + channel) * taps * taps;
            const to = ((output / lanes) * channels + channel) * lanes + output % lanes;
            try transform(source, from, target, to, plane, matrix[0..points]);
        };
        return target.out;
    }

    /// G g G^T in float64, first along the rows, each sum from left to right; rounded to float32.
    fn transform(source: Elements, from: usize, target: Elements, to: usize, plane: usize, matrix: []const [taps]f64) Failure!void {
        var g: [taps][taps]f64 = undefined;
        for (0..taps) |k| for (0..taps) |l| {
            g[k][l] = @as(f32, @bitCast(source.get(from + k * taps + l)));
        };
        for (matrix, 0..) |left, i| {
            var row: [taps]f64 = undefined;
            for (0..taps) |l| row[l] = left[0] * g[0][l] + left[1] * g[1][l] + left[2] * g[2][l];
            for (matrix, 0..) |right, j| {
                const value = row[0] * right[0] + row[1] * right[1] + row[2] * right[2];
                try target.put((i * matrix.len + j) * plane + to, @bitCast(@as(f32, @floatCast(value))));
            }
        }
    }

    fn run(self: *Unpacker, content: []u8) Failure!void {
        const directory = self.streams.of(.directory);
        var at: usize = 0;
        while (directory.rest.len != 0) {
            const distance = try directory.number();
            if (distance > content.len - at) return error.Corrupt;
            at += distance;
            const form: Form = @bitCast(try directory.byte());
            if (form.reserved) return error.Corrupt;
            if (form.filters) {
                at += (try self.filters(form, content[at..])).len;
                continue;
            }
            const width, const count = .{ try form.bytes(), try directory.number() };
            if (count > (content.len - at) / width) return error.Corrupt;
            try self.elements(form, .{ .out = content[at..][0 .. count * width], .width = width });
            at += count * width;
        }
        if (!self.streams.done()) return error.Corrupt;
    }
};

fn unpack(file: [*]const u8, file_bytes: usize, content: [*]u8, content_bytes: usize, work: [*]u8, work_bytes: usize) callconv(.c) c_int {
    var fixed = std.heap.FixedBufferAllocator.init(work[0..work_bytes]);
    const memory = fixed.allocator();
    const streams = Streams.open(memory, file[0..file_bytes]) catch return 1;
    var unpacker = Unpacker{ .memory = memory, .streams = streams };
    unpacker.run(content[0..content_bytes]) catch return 1;
    return 0;
}

extern fn @symbol@_unpack_panic() callconv(.c) noreturn;

fn stop(_: []const u8, _: ?usize) noreturn {
    @symbol@_unpack_panic();
}

pub const panic = std.debug.FullPanic(stop);

comptime {
    @export(&unpack, .{ .name = "@symbol@_unpack", .visibility = .hidden });
}
