#pragma once

namespace bert_fast {

enum class HostDType { kFloat32, kBFloat16 };

}  // namespace bert_fast
