-- Wireshark dissector of the Tandem Stream Protocol, written from runtime/wire/PROTOCOL.md and independent of the codec.
--
--   tshark -X lua_script:tests/wireshark/tandem_stream.lua -d tcp.port==8001,tandem_stream -i lo
--
-- Display filters: tandem_stream.type, .stream, .flags, .length, .crc_ok, and .field with texts such as "offset: 5".

local bit = bit or bit32
local proto = Proto("tandem_stream", "Tandem Stream Protocol")

local TYPES = {
    "HELLO", "WELCOME", "SUBMIT", "ACCEPTED", "TOKENS", "DONE", "ERROR", "CREDIT", "ACK", "CANCEL", "RESUME", "PING",
    "PONG", "DRAIN", "STATUS", "STATUS_REPLY", "BYE",
}

local f = proto.fields
f.magic = ProtoField.bytes("tandem_stream.magic", "Magic")
f.length = ProtoField.uint32("tandem_stream.length", "Length of the payload")
f.type = ProtoField.uint8("tandem_stream.type", "Type", base.DEC, TYPES)
f.flags = ProtoField.uint8("tandem_stream.flags", "Flags", base.HEX)
f.flag_end = ProtoField.bool("tandem_stream.flags.end", "END", 8, nil, 1)
f.flag_optional = ProtoField.bool("tandem_stream.flags.optional", "OPTIONAL", 8, nil, 2)
f.stream = ProtoField.uint32("tandem_stream.stream", "Stream")
f.crc = ProtoField.uint32("tandem_stream.crc", "CRC-32C", base.HEX)
f.crc_ok = ProtoField.bool("tandem_stream.crc_ok", "Checksum is right")
f.field = ProtoField.string("tandem_stream.field", "Field")

local bad_crc = ProtoExpert.new("tandem_stream.bad_crc", "Wrong checksum", expert.group.CHECKSUM, expert.severity.ERROR)
local malformed = ProtoExpert.new("tandem_stream.malformed", "Malformed field", expert.group.MALFORMED,
    expert.severity.ERROR)
proto.experts = { bad_crc, malformed }

local TOOL_CALL = { [1] = { "id", "text" }, [3] = { "name", "text" }, [5] = { "arguments", "text" } }
local MESSAGE = {
    [1] = { "role", "text" }, [3] = { "content", "text" }, [5] = { "name", "text" }, [7] = { "tool_call_id", "text" },
    [9] = { "tool_call", "fields", TOOL_CALL },
}
local PING = { [1] = { "data", "u64" } }

local FIELDS = {
    HELLO = { [1] = { "version", "u32" }, [3] = { "key", "secret" }, [2] = { "name", "text" } },
    WELCOME = {
        [1] = { "version", "u32" }, [3] = { "max_frame", "u32" }, [5] = { "max_streams", "u32" },
        [7] = { "resume_window_ms", "u32" }, [9] = { "ping_ms", "u32" }, [11] = { "life", "u64" },
        [2] = { "name", "text" }, [4] = { "model", "text" }, [6] = { "max_model_len", "u32" },
    },
    SUBMIT = {
        [1] = { "request_id", "id" }, [3] = { "prompt", "text" }, [5] = { "prompt_ids", "u32s" },
        [7] = { "message", "fields", MESSAGE }, [9] = { "model", "text" }, [11] = { "max_tokens", "u32" },
        [13] = { "n", "u32" }, [15] = { "temperature", "f32" }, [17] = { "top_p", "f32" }, [19] = { "top_k", "u32" },
        [21] = { "min_p", "f32" }, [23] = { "repetition_penalty", "f32" }, [25] = { "presence_penalty", "f32" },
        [27] = { "frequency_penalty", "f32" }, [29] = { "seed", "u64" }, [31] = { "stop", "text" },
        [33] = { "stop_token_ids", "u32s" }, [35] = { "logit_bias", "bytes" }, [37] = { "logprobs", "u32" },
        [39] = { "ignore_eos", "u8" }, [41] = { "include_stop_str_in_output", "u8" },
        [43] = { "skip_special_tokens", "u8" }, [45] = { "include_reasoning", "u8" }, [47] = { "echo", "u8" },
        [49] = { "add_special_tokens", "u8" }, [51] = { "add_generation_prompt", "u8" },
        [53] = { "continue_final_message", "u8" }, [55] = { "deadline_ms", "u32" }, [57] = { "credit", "u32" },
        [59] = { "on_disconnect", "u8" },
    },
    ACCEPTED = {
        [1] = { "request_id", "id" }, [3] = { "prompt_tokens", "u32" }, [5] = { "choices", "u32" }, [7] = { "known", "u8" },
    },
    TOKENS = {
        [1] = { "choice", "u32" }, [3] = { "offset", "u64" }, [5] = { "ids", "u32s" }, [7] = { "text", "text" },
        [9] = { "reasoning", "text" }, [11] = { "logprobs", "bytes" },
    },
    DONE = {
        [1] = { "choice", "u32" }, [3] = { "finish", "u8" }, [5] = { "tokens", "u64" }, [7] = { "crc", "u32" },
        [9] = { "text", "text" }, [11] = { "reasoning", "text" }, [13] = { "prompt_tokens", "u64" },
        [15] = { "completion_tokens", "u64" }, [17] = { "reasoning_tokens", "u64" },
    },
    ERROR = {
        [1] = { "code", "u32" }, [3] = { "message", "text" }, [5] = { "retry_after_ms", "u32" }, [7] = { "param", "text" },
    },
    CREDIT = { [1] = { "tokens", "u32" } },
    ACK = { [1] = { "request_id", "id" } },
    CANCEL = { [1] = { "request_id", "id" } },
    RESUME = { [1] = { "request_id", "id" }, [3] = { "offsets", "u64s" }, [5] = { "credit", "u32" } },
    PING = PING,
    PONG = PING,
    DRAIN = { [1] = { "deadline_ms", "u32" } },
    STATUS_REPLY = {
        [1] = { "running", "u32" }, [3] = { "waiting", "u32" }, [5] = { "queue_max", "u32" }, [7] = { "kv_used", "f32" },
        [9] = { "replicas", "u32" }, [11] = { "replicas_up", "u32" }, [13] = { "draining", "u8" },
        [15] = { "requests", "u32" },
    },
    BYE = { [1] = { "code", "u32" }, [3] = { "message", "text" } },
}

local crc_table = {}
for i = 0, 255 do
    local crc = i
    for _ = 1, 8 do
        crc = bit.bxor(bit.rshift(crc, 1), bit.band(crc, 1) == 1 and 0x82F63B78 or 0)
    end
    crc_table[i] = crc
end

local function crc32c(crc, bytes)
    for i = 0, bytes:len() - 1 do
        crc = bit.bxor(bit.rshift(crc, 8), crc_table[bit.band(bit.bxor(crc, bytes:get_index(i)), 0xFF)])
    end
    return crc
end

local function frame_crc(tvb, length)
    local crc = crc32c(0xFFFFFFFF, tvb(0, 12):bytes())
    if length > 0 then
        crc = crc32c(crc, tvb(16, length):bytes())
    end
    return bit.bxor(crc, 0xFFFFFFFF) % 0x100000000
end

local function list(value, size)
    local items = {}
    for at = 0, value:len() - size, size do
        items[#items + 1] = size == 4 and tostring(value(at, 4):le_uint()) or tostring(value(at, 8):le_uint64())
    end
    return "[" .. table.concat(items, " ") .. "]"
end

local function value_text(kind, value)
    if kind == "u8" or kind == "u32" then
        return tostring(value:le_uint())
    elseif kind == "u64" then
        return tostring(value:le_uint64())
    elseif kind == "f32" then
        return string.format("%.9g", value:le_float())
    elseif kind == "u32s" then
        return list(value, 4)
    elseif kind == "u64s" then
        return list(value, 8)
    elseif kind == "text" then
        return value:len() > 0 and value:string(ENC_UTF_8) or ""
    elseif kind == "secret" then
        return "(" .. value:len() .. " bytes)"
    end
    return value:len() > 0 and value:bytes():tohex(true) or ""
end

local add_fields

local function add_field(known, tag, whole, value, tree)
    local name, kind, nested = "field " .. tag, "bytes", nil
    if known and known[tag] then
        name, kind, nested = known[tag][1], known[tag][2], known[tag][3]
    end
    if kind == "fields" then
        add_fields(nested, value, tree:add(f.field, whole, name):set_text(name))
    else
        local text = name .. ": " .. value_text(kind, value)
        tree:add(f.field, whole, text):set_text(text)
    end
end

add_fields = function(known, range, tree)
    local at = 0
    while at < range:len() do
        if range:len() - at < 8 or range(at + 4, 4):le_uint() > range:len() - at - 8 then
            tree:add_proto_expert_info(malformed)
            return
        end
        local tag, size = range(at, 2):le_uint(), range(at + 4, 4):le_uint()
        -- An empty value has no range of its own: the field's last byte stands in, and is not read.
        local value = size > 0 and range(at + 8, size) or range(at + 7, 0)
        add_field(known, tag, range(at, 8 + size), value, tree)
        at = at + 8 + size
    end
end

local function is_magic(tvb)
    return tvb(0, 4):uint() == 0x89545350
end

local function dissect_frame(tvb, pinfo, root)
    pinfo.cols.protocol = "TSP"
    if is_magic(tvb) then
        local tree = root:add(proto, tvb(0, 8), "Tandem Stream Protocol, magic")
        tree:add(f.magic, tvb(0, 8))
        return 8
    end
    local length, kind, stream = tvb(0, 4):le_uint(), tvb(4, 1):uint(), tvb(8, 4):le_uint()
    local name = TYPES[kind] or "type " .. kind
    local tree = root:add(proto, tvb(0, 16 + length), "Tandem Stream Protocol, " .. name .. ", stream " .. stream)
    tree:add_le(f.length, tvb(0, 4))
    tree:add(f.type, tvb(4, 1))
    local flags = tree:add(f.flags, tvb(5, 1))
    flags:add(f.flag_end, tvb(5, 1))
    flags:add(f.flag_optional, tvb(5, 1))
    tree:add_le(f.stream, tvb(8, 4))
    local crc = tree:add_le(f.crc, tvb(12, 4))
    local right = frame_crc(tvb, length) == tvb(12, 4):le_uint()
    tree:add(f.crc_ok, tvb(12, 4), right)
    if not right then
        crc:add_proto_expert_info(bad_crc)
    end
    if length > 0 then
        add_fields(FIELDS[name], tvb(16, length), tree)
    end
    pinfo.cols.info:append(" [" .. name .. " " .. stream .. "]")
    return 16 + length
end

local function frame_length(tvb, _, offset)
    local rest = tvb(offset)
    return is_magic(rest) and 8 or rest(0, 4):le_uint() + 16
end

function proto.dissector(tvb, pinfo, root)
    dissect_tcp_pdus(tvb, root, 8, frame_length, dissect_frame)
    return tvb:len()
end

DissectorTable.get("tcp.port"):add_for_decode_as(proto)
